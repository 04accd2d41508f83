"""Texts that grow in branches: the tree, the database that keeps it, and its files. Knows no HTTP."""
