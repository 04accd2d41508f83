"""Which decoding suits a model: the strategies side by side, in figures and on a page, and the search for settings."""
