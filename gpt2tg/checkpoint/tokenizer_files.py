"""Read a tokenizer from all files of a checkpoint that describe it.

The result has the same ids as AutoTokenizer of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

from gpt2tg.checkpoint.adapters import is_adapter
from gpt2tg.checkpoint.added_tokens import ROLES, add_tokens, listed_tokens, parse_token, tokens_to_add
from gpt2tg.checkpoint.base_tokenizer import BERT_CLASS, END_OF_TEXT, GPT2_CLASS, add_template, build_base
from gpt2tg.checkpoint.file_names import (
    MERGES,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    VOCABULARY,
    WORD_PIECES,
    complete_vocabulary,
)
from gpt2tg.checkpoint.find import base_directory
from gpt2tg.errors import UserError, one_line
from gpt2tg.io.json_files import read_json

# The name of `extra_special_tokens` in transformers 4.
OLD_EXTRA = "additional_special_tokens"

# The special tokens by role that a tokenizer class has unless its files name others.
DEFAULT_ROLES = {
    GPT2_CLASS: dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
    BERT_CLASS: {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")},
}


@dataclass(frozen=True)
class StoredTokenizer:
    """A tokenizer as the files of a checkpoint describe it."""

    raw: Tokenizer
    roles: dict[str, str]
    """The tokens that have a role, such as `eos_token`, and an id."""
    cleans_up: bool
    """Whether decoding removes spaces before punctuation."""
    left_out: tuple[str, ...]
    """Added tokens without a row in the model's embedding."""
    moved: tuple[str, ...]
    """Added tokens with another id than the one that the files beside the tokenizer list."""


def tokenizer_directory(directory: Path) -> Path:
    """Return the directory with a model's tokenizer: its own, or for an adapter without one, that of its model.

    Raises:
        UserError: there is no tokenizer.
    """
    if _vocabulary(directory):
        return directory
    if is_adapter(directory):
        return tokenizer_directory(base_directory(directory))
    raise UserError(
        f"{directory} holds no tokenizer: expected {TOKENIZER_JSON}, or {VOCABULARY} with {MERGES}, or {WORD_PIECES}. "
        "From other files, AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers can write one"
    )


def _vocabulary(directory: Path) -> tuple[str, ...]:
    return complete_vocabulary({path.name for path in directory.iterdir() if path.is_file()})


def read_tokenizer(directory: Path, rows: int) -> StoredTokenizer:
    """Read the tokenizer of a model from all files that describe it.

    Args:
        rows: the rows of the model's embedding. Added tokens with ids beyond them are left out, since the model cannot
            read them.

    Raises:
        UserError: the files are missing or broken.
    """
    directory = tokenizer_directory(directory)
    settings, vocabulary = _settings(directory), _vocabulary(directory)
    try:
        raw, beyond = build_base(directory, vocabulary, settings, rows)
        listed = listed_tokens(directory, settings)
        left_out = {*beyond, *add_tokens(raw, tokens_to_add(listed, settings, raw), rows)}
        raw.no_padding()
        raw.no_truncation()
        raw.encode_special_tokens = settings.get("split_special_tokens") is True
        roles = {role: str(token) for role in ROLES if (token := parse_token(settings.get(role))) is not None}
        roles = {role: name for role, name in roles.items() if raw.token_to_id(name) is not None}
        if TOKENIZER_JSON not in vocabulary:
            add_template(raw, settings, roles)
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception for broken files
        raise UserError(
            f"{directory}: the tokenizer cannot be read from {' and '.join(vocabulary)} ({one_line(error)}): "
            "copy or download it again"
        ) from None
    moved = (token.content for number, token in listed.items() if raw.token_to_id(token.content) not in (number, None))
    return StoredTokenizer(raw, roles, _cleans_up(raw, settings), tuple(sorted(left_out)), tuple(moved))


def _settings(directory: Path) -> dict[str, Any]:
    """Return tokenizer_config.json with the defaults of its class, and with special_tokens_map.json if that counts.

    As in transformers, special_tokens_map.json counts only if the settings do not list the added tokens.
    """
    settings = _read_if_exists(directory / TOKENIZER_CONFIG)
    name = settings.get("tokenizer_class") or _read_if_exists(directory / "config.json").get("tokenizer_class")
    if not isinstance(name, str):
        name = BERT_CLASS if _vocabulary(directory) == (WORD_PIECES,) else GPT2_CLASS
    name = name.removesuffix("Fast")
    settings["extra_special_tokens"] = settings.get("extra_special_tokens") or settings.pop(OLD_EXTRA, None)
    if "added_tokens_decoder" not in settings:
        settings |= _read_if_exists(directory / SPECIAL_TOKENS)
    settings["extra_special_tokens"] = settings["extra_special_tokens"] or settings.get(OLD_EXTRA)
    return {**DEFAULT_ROLES.get(name, {}), **settings, "tokenizer_class": name}


def _read_if_exists(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _cleans_up(raw: Tokenizer, settings: Mapping[str, Any]) -> bool:
    """Whether decoding cleans up spaces. As in transformers, never with byte-pair encodings unless forced."""
    forced = settings.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output") is True
    return settings.get("clean_up_tokenization_spaces") is True and (forced or not isinstance(raw.model, BPE))
