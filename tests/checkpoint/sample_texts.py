"""Texts that the tests of tokenizers share."""

from __future__ import annotations

import random

import pytest

TEXTS = [
    "The owl sold silence by the ounce.",
    " leading space",
    "   three leading, and two trailing  ",
    "two\n\nparagraphs\r\nand\ttabs\n",
    "it's they'll we've I'M don't",
    "numbers 3.14 2024 00",
    "naïve café, Zoë",
    "e\u0301 a\u0308o\u0302 \u0915\u094d\u0937",
    "🦊 and 👩‍👩‍👧 and 🇫🇷",
    "フクロウは静けさを売った。猫头鹰出售寂静。",
    "سلام עולם สวัสดี",
    "\u00a0\u2003\u3000|\u200b|\ufeff",
    "zero \0 and bell \a",
    "the end<|endoftext|>and after",
    "<|endoftext|><|endoftext|>",
    "<|endoftext| >",
    "\N{REPLACEMENT CHARACTER} on purpose",
    "",
]


def random_text(rng: random.Random, length: int) -> str:
    """Characters of one to four bytes in UTF-8; none of them the sign for a broken one."""
    ranges = [(0x20, 0x7F), (0xA0, 0x800), (0x800, 0xD800), (0xE000, 0xFFFD), (0x1F300, 0x1FAFF), (0x10000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(length))


RANDOM_TEXTS = [pytest.param(random_text(random.Random(seed), 1 + 4 * seed), id=f"random {seed}") for seed in range(20)]
