"""The roof of a machine: the least time that its memory and its arithmetic allow for a piece of work.

Counted are the weights that are read and the products with them. Attention and the KV cache are not, so the share of
the roof is slightly too low for long contexts.
"""

from __future__ import annotations

import formats


def weights(shape: str) -> int:
    """Return the number of weights in all matrices but the embedding of positions."""
    sizes = formats.SHAPES[shape]
    return sizes["n_embd"] * (formats.VOCABULARY + 12 * sizes["n_layer"] * sizes["n_embd"])


def products(shape: str, tokens: int, logits: int) -> int:
    """Return the operations of one forward pass over so many tokens, of which so many get logits."""
    head = formats.SHAPES[shape]["n_embd"] * formats.VOCABULARY
    return 2 * ((weights(shape) - head) * tokens + head * logits)


def seconds(table: dict, rival: dict, machine: dict) -> float:
    """Return the least time of a table's work for a rival.

    Args:
        table: has shape, rows, prompt and new_tokens.
        rival: has bytes_per_weight and products, the numbers that it may multiply.
        machine: has bandwidth_gb_per_second and gflops, by the numbers multiplied.
    """
    read = weights(table["shape"]) * rival["bytes_per_weight"] / (1e9 * machine["bandwidth_gb_per_second"])
    speed = 1e9 * machine["gflops"][rival["products"]]
    passes = [table["rows"] * table["prompt"]] + [table["rows"]] * (table["new_tokens"] - 1)
    return sum(max(read, products(table["shape"], tokens, table["rows"]) / speed) for tokens in passes)


def share(table: dict, rival: dict, machine: dict, tokens_per_second: float) -> float:
    """Return the part of the roof that a rival reaches at a table's work."""
    tokens = table["rows"] * (table["prompt"] if table["new_tokens"] == 1 else table["new_tokens"])
    return seconds(table, rival, machine) * tokens_per_second / tokens
