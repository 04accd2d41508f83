"""Inspect and change the steps of a `tokenizers.Tokenizer` before and after its model."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE


def pipeline(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return normalizer, pre-tokenizer and decoder in the form of tokenizer.json, without the vocabulary."""
    shell = Tokenizer(BPE())
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if (value := getattr(tokenizer, part)) is not None:
            setattr(shell, part, value)
    found: dict[str, Any] = json.loads(shell.to_str())
    return found


def without_first_word_space(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that puts no space before the first word of a text, for a text that continues another one.

    Returns:
        The same object if it puts no space there anyway, else a copy that shares the model.
    """
    original = pipeline(tokenizer)
    changed = {
        **original,
        **{part: _without_space(original[part]) for part in ("normalizer", "pre_tokenizer")},
    }
    if changed == original:
        return tokenizer
    parts = Tokenizer.from_str(json.dumps(changed))
    copy = Tokenizer(tokenizer.model)
    copy.add_tokens([token for _, token in sorted(tokenizer.get_added_tokens_decoder().items())])
    copy.pre_tokenizer, copy.encode_special_tokens = parts.pre_tokenizer, tokenizer.encode_special_tokens
    if parts.normalizer is not None:
        copy.normalizer = parts.normalizer
    return copy


def _without_space(step: Any) -> Any:
    """Return a normalizer or pre-tokenizer of tokenizer.json that puts no space before the first word.

    In a sequence only the first step is changed: after a step that splits the text, every word is a first word.
    """
    kind = step["type"] if step else None
    if kind == "Sequence":
        name = "normalizers" if "normalizers" in step else "pretokenizers"
        first, *others = step[name] or [None]
        return {**step, name: [_without_space(first), *others]} if first else step
    if kind == "ByteLevel":
        return {**step, "add_prefix_space": False}
    if kind == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    return {"type": "Sequence", "normalizers": []} if kind == "Prepend" else step
