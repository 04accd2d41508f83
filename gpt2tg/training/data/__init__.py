"""From the user's text files to batches: find, scan, split, tokenize, pack, collate.

In this order: `input_files` or `find_dataset`, `file_pass`, `corpus` or `dataset_scan`, `split`, `sources`,
`tokenization`, `token_cache`, `tokens`, `blocks`, `packing`, `training_data`, `batches`.
"""
