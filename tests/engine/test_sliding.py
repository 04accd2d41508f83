"""Texts beyond the model's context length."""

from __future__ import annotations

import torch
from conftest import random_ids
from test_model import TOLERANCE, reference_logits
from transformers import GPT2LMHeadModel

from gpt2tg.engine.model import GPT2
from gpt2tg.engine.sliding import SlidingRows


def window_of(length: int) -> int:
    """Return how many tokens the model sees of a text of `length`, worked out by hand for 64 positions."""
    seen = 0
    for _ in range(length):
        seen = 33 if seen == 64 else seen + 1
    return seen


def test_each_row_has_its_own_window(gpt2: GPT2, reference: GPT2LMHeadModel) -> None:
    texts = [random_ids(60, seed=1), random_ids(3, seed=2)]
    rows = SlidingRows(gpt2)
    logits = rows.start(texts)
    for step in range(140):
        if step in (0, 3, 4, 5, 37, 62, 63, 100, 139):
            expected = [reference_logits(reference, text[-window_of(len(text)) :]) for text in texts]
            torch.testing.assert_close(logits, torch.stack(expected), atol=TOLERANCE, rtol=0)
        tokens = random_ids(2, seed=100 + step)
        texts = [[*text, token] for text, token in zip(texts, tokens, strict=True)]
        logits = rows.step(torch.tensor(tokens))


def test_selected_rows_keep_their_texts(gpt2: GPT2, reference: GPT2LMHeadModel) -> None:
    texts = [random_ids(64, seed=1), random_ids(64, seed=2), random_ids(20, seed=3)]
    rows = SlidingRows(gpt2)
    rows.start(texts)
    rows.select([1, 1, 2])
    logits = rows.step(torch.tensor([5, 6, 7]))
    expected = [[*texts[1][-32:], 5], [*texts[1][-32:], 6], [*texts[2], 7]]
    torch.testing.assert_close(
        logits, torch.stack([reference_logits(reference, text) for text in expected]), atol=TOLERANCE, rtol=0
    )


def test_long_prompt_is_read_from_its_end(gpt2: GPT2, reference: GPT2LMHeadModel) -> None:
    text = random_ids(100, seed=4)
    logits = SlidingRows(gpt2).start([text])
    torch.testing.assert_close(logits[0], reference_logits(reference, text[-64:]), atol=TOLERANCE, rtol=0)
