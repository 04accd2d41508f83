"""From logits to token ids. Imports torch and numpy only: it knows no tokenizer, no file and no model of this package.

Letters in shapes: B rows of a batch, V vocabulary, K beams.
"""
