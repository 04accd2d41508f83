"""Text files in, checkpoint directory out. The only wing that knows transformers and accelerate."""
