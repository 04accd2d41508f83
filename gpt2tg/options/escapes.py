r"""Escapes in texts that are typed: `\n` for a line break, `\t` for a tab, `\\` for a backslash."""

from __future__ import annotations

import re

ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


def read_escapes(text: str) -> str:
    r"""Replace `\n` by a line break, `\t` by a tab and `\\` by a backslash; other backslashes stay."""
    return re.sub(r"\\[nt\\]", lambda found: ESCAPES[found[0]], text)


def write_escapes(text: str) -> str:
    """Write a text so that `read_escapes` gives it back."""
    text = re.sub(r"\\(?=[nt\\]|$)", r"\\\\", text)
    return text.replace("\n", r"\n").replace("\t", r"\t")
