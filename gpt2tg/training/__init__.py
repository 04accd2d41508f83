"""Fine-tune GPT-2: text files in, a checkpoint directory out. Only this wing imports the training libraries."""
