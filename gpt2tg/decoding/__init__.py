"""Logits in, token ids out. Knows torch, numpy and nothing of ours: no tokenizer, no file, no model.

Letters in shapes: B rows, V vocabulary, K beams.
"""
