"""The tokenizer of a model trained from scratch, and the conversion to a transformers tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from gpt2tg.checkpoint.base_tokenizer import END_OF_TEXT, byte_level
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.io.json_files import read_json
from gpt2tg.training.data.sources import TextSource


def train_tokenizer(source: TextSource, vocab_size: int) -> TextTokenizer:
    """Train byte-pair encoding (Sennrich et al. 2016) over bytes, as GPT-2 does (Radford et al. 2019)."""
    raw = byte_level(BPE())
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Chat templates write the end-of-text token, which is no text to learn merges from.
    raw.train_from_iterator((piece.text.replace(END_OF_TEXT, "") for piece in source), trainer)
    end_id = raw.token_to_id(END_OF_TEXT)
    assert end_id is not None
    return TextTokenizer(raw, end_id)


def saved_tokenizer(checkpoint: Path) -> TextTokenizer:
    """Return the tokenizer in a checkpoint of a run from scratch, as `train_tokenizer` made it.

    Transformers adds a post-processor that does nothing when it saves a tokenizer. It is removed, because the tokens
    were cached under a name that depends on the tokenizer without it.

    Raises:
        UserError: the file cannot be read, or has no end-of-text token.
    """
    path = checkpoint / "tokenizer.json"
    raw = Tokenizer.from_str(json.dumps({**read_json(path), "post_processor": None}))
    end_id = raw.token_to_id(END_OF_TEXT)
    if end_id is None:
        raise UserError(f"{path} has no token {END_OF_TEXT}: it is not of a run from scratch")
    return TextTokenizer(raw, end_id)


def transformers_tokenizer(
    tokenizer: TextTokenizer, positions: int, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """Return the same tokenizer as a transformers tokenizer, which can be saved.

    Args:
        positions: the context length of the model.
        chat_template: Jinja; None if the model has no chat template.
    """
    end = tokenizer.raw.id_to_token(tokenizer.end_id)
    found: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # not annotated there
        tokenizer_object=tokenizer.raw, bos_token=end, eos_token=end, unk_token=end, model_max_length=positions
    )
    found.chat_template = chat_template
    return found
