"""Plain-text tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> list[str]:
    """Return rows of cells as lines, with two spaces between the columns and none at the end of a line.

    Columns are aligned by their width on a terminal, where characters such as 猫 take two columns.

    Args:
        left: the indices of the columns that are aligned to the left; the others are aligned to the right.
    """
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (width - _width(cell))
            padded.append(cell + padding if column in left else padding + cell)
        lines.append("  ".join(padded).rstrip())
    return lines


def _width(cell: str) -> int:
    if cell.isascii():
        return len(cell)
    from wcwidth import wcswidth  # its tables take 10 ms to load, and most cells do not need them

    return max(wcswidth(cell), 0)
