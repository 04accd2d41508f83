"""Checkpoint and token ids in, logits out. Knows torch, safetensors, tokenizers and the hub; not transformers."""
