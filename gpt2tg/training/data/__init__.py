"""From the user's text files to batches: find, scan, split, tokenize, pack, collate.

In this order: `input_files`, `corpus`, `split`, `sources`, `token_cache`, `blocks`, `packing`, `training_data`,
`batches`.
"""
