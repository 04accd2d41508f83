"""Add tokens to the vocabulary of a model that is fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GPT2LMHeadModel

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.tokenizer_loading import unused_ids
from gpt2tg.training.console import log


def add_tokens(model: GPT2LMHeadModel, tokenizer: TextTokenizer, names: Sequence[str]) -> dict[int, str]:
    """Add tokens to a tokenizer, and rows for them to the embeddings of a model, both in place.

    Rows without a token, with which some models pad their embedding, are used first, as in transformers. A new row is
    the mean of all rows that have a token (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
    Models"): a token that is new is neither likely nor unlikely.

    Returns:
        The tokens that were not in the vocabulary before, by id.
    """
    used = torch.ones(model.config.vocab_size, dtype=torch.bool)
    used[unused_ids(tokenizer, model.config.vocab_size, ())] = False
    added = extend(tokenizer, names)
    if not added:
        return {}
    if max(added) >= model.config.vocab_size:
        model.resize_token_embeddings(max(added) + 1, mean_resizing=False)
    for layer in (model.transformer.wte, model.lm_head):  # one after the other also if they share their weights
        rows = layer.weight.data
        rows[list(added)] = rows[: len(used)][used].mean(dim=0)
    return added


def extend(tokenizer: TextTokenizer, names: Sequence[str]) -> dict[int, str]:
    """Add tokens to a tokenizer in place, as ordinary tokens that decoding shows.

    Returns:
        The tokens that were not in the vocabulary before, by id.
    """
    known = [name for name in names if tokenizer.raw.token_to_id(name) is not None]
    if known:
        log.info(f"--add_tokens: already in the vocabulary: {', '.join(known)}")
    new = [name for name in dict.fromkeys(names) if name not in known]
    tokenizer.raw.add_tokens(new)
    return {number: name for name in new if (number := tokenizer.raw.token_to_id(name)) is not None}
