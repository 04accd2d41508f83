"""The transformers model to train: built, adapted, and what it costs in memory."""
