"""Write a model in the formats of other programs: transformers, llama.cpp, CTranslate2."""
