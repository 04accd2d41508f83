"""Names of the files in a checkpoint directory."""

from __future__ import annotations

from collections.abc import Set

# The weights of a whole model, most preferred first, as in transformers.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# Settings and weights of a LoRA adapter, as peft names them.
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"

# Where a training run puts the adapter when the output directory itself holds the merged model.
ADAPTER_DIRECTORY = "adapter"

GENERATION_CONFIG = "generation_config.json"
CONFIG_FILES = ("config.json", GENERATION_CONFIG)

# tokenizer.json holds a complete tokenizer. Older checkpoints hold only a vocabulary, BERT's tokenizers in vocab.txt.
TOKENIZER_JSON = "tokenizer.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
WORD_PIECES = "vocab.txt"

# The groups of files that can hold the vocabulary, most preferred first. Only one group is read.
VOCABULARIES = ((TOKENIZER_JSON,), (VOCABULARY, MERGES), (WORD_PIECES,))
VOCABULARY_FILES = tuple(name for names in VOCABULARIES for name in names)

# Further tokens and settings of the tokenizer.
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"

# Where transformers keeps the default chat template, and the directory of the others.
CHAT_TEMPLATE, OTHER_CHAT_TEMPLATES = "chat_template.jinja", "additional_chat_templates"

TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    *(TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS),
    *(CHAT_TEMPLATE, "chat_template.json"),
)


def complete_vocabulary(files: Set[str]) -> tuple[str, ...]:
    """Return the files to read the vocabulary from: the most preferred complete group, or () if none is complete.

    Args:
        files: names of all files in the directory.
    """
    return next((names for names in VOCABULARIES if files >= set(names)), ())
