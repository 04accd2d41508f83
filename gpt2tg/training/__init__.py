"""Text file in, checkpoint directory out. The only wing that knows transformers, datasets and accelerate."""
