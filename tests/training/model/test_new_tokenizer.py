"""The tokenizer of a run from scratch, saved and loaded again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.training.model.new_tokenizer import saved_tokenizer, transformers_tokenizer


def test_saved_tokenizer_equals_the_trained_one(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """Without the post-processor that transformers adds, so that cached tokens are found again."""
    transformers_tokenizer(tokenizer, 64).save_pretrained(tmp_path)
    loaded = saved_tokenizer(tmp_path)
    assert loaded.end_id == tokenizer.end_id
    assert json.loads(loaded.raw.to_str()) == json.loads(tokenizer.raw.to_str())


def test_saved_tokenizer_without_an_end_token_is_refused(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.raw.to_str().replace("<|endoftext|>", "<end>"))
    with pytest.raises(UserError, match=r"tokenizer\.json has no token <\|endoftext\|>"):
        saved_tokenizer(tmp_path)
