"""Collect the tokens that the files beside a tokenizer add to it.

tokenizer_config.json, special_tokens_map.json and added_tokens.json can each list tokens, in the formats of several
versions of transformers. The result is what AutoTokenizer of transformers makes of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from gpt2tg.checkpoint.file_names import ADDED_TOKENS, TOKENIZER_CONFIG, TOKENIZER_JSON
from gpt2tg.errors import UserError
from gpt2tg.io.json_files import read_json

# The settings that name a special token by its role.
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def parse_token(value: Any, special: bool = True) -> AddedToken | None:
    """Return a token as the files write it: its text, or an object with its text and flags. None for anything else.

    Args:
        special: whether the token is special if the value does not tell.
    """
    if isinstance(value, str):
        return AddedToken(value, special=special, normalized=not special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return None
    flags = {name: value[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in value}
    return AddedToken(value["content"], special=value.get("special", special), **flags)


def listed_tokens(directory: Path, settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Return the tokens that tokenizer_config.json, or else added_tokens.json, lists with their ids.

    Raises:
        UserError: an entry is not a token with an id.
    """
    if "added_tokens_decoder" in settings:
        file, entries = TOKENIZER_CONFIG, settings["added_tokens_decoder"]
        if not isinstance(entries, dict):
            raise UserError(
                f"{directory / file}: added_tokens_decoder is not an object: get the file again, or save the tokenizer "
                "anew with transformers"
            )
        tokens = {number: parse_token(value, special=False) for number, value in entries.items()}
    else:
        file = ADDED_TOKENS
        entries = read_json(directory / file) if (directory / file).is_file() else {}
        special = {str(parse_token(value)) for value in (*_with_role(settings), *_without_role(settings))}
        tokens = {number: parse_token(name, special=name in special) for name, number in entries.items()}
    for number, token in tokens.items():
        if token is None or not str(number).isdecimal():
            raise UserError(
                f"{directory / file}: expected tokens with their ids, found {number}: {token}. Get the file again, or "
                "save the tokenizer anew with transformers"
            )
    return {int(number): token for number, token in tokens.items() if token is not None}


def tokens_to_add(
    listed: Mapping[int, AddedToken], settings: Mapping[str, Any], raw: Tokenizer
) -> Iterator[AddedToken]:
    """Yield the tokens to add to a tokenizer: first those with an id, in the order of their ids, then the others.

    Args:
        listed: what `listed_tokens` returned.
        raw: the tokenizer with the added tokens of its own.
    """
    own = raw.get_added_tokens_decoder()
    with_role = [token for value in _with_role(settings) if (token := parse_token(value)) is not None]
    known, names_with_role = {repr(token) for token in own.values()}, {token.content for token in with_role}
    for _, token in sorted({**own, **listed}.items()):
        if token.content in names_with_role:
            token.special = True
        if repr(token) not in known:
            yield token
    names = {token.content for token in (*own.values(), *listed.values())}
    for token in (*with_role, *filter(None, map(parse_token, _without_role(settings)))):
        if token.content not in names:
            yield token


def add_tokens(raw: Tokenizer, tokens: Iterable[AddedToken], rows: int) -> list[str]:
    """Add tokens to a tokenizer in place. Return the names of those that got no id below `rows` and were left out."""
    last = max((*raw.get_added_tokens_decoder(), raw.get_vocab_size(with_added_tokens=False) - 1))
    kept, left_out = [], []
    for token in tokens:
        if raw.token_to_id(token.content) is None:
            if last + 1 >= rows:
                left_out.append(token.content)
                continue
            last += 1
        kept.append(token)
    raw.add_tokens(kept)
    return left_out


def with_new_tokens(files: Mapping[str, bytes], tokens: Mapping[int, str]) -> dict[str, bytes]:
    """Return a tokenizer's files with further tokens, which decoding shows.

    Args:
        files: content by file name.
        tokens: the new tokens by id.
    """
    changed, names = dict(files), {name: number for number, name in tokens.items()}
    flags = {**dict.fromkeys(("single_word", "lstrip", "rstrip"), False), "normalized": True, "special": False}
    settings = json.loads(files.get(TOKENIZER_CONFIG, b"{}"))
    if TOKENIZER_JSON in files:
        content = json.loads(files[TOKENIZER_JSON])
        content["added_tokens"] += [{"id": number, "content": name, **flags} for number, name in tokens.items()]
        changed[TOKENIZER_JSON] = _as_json(content)
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] |= {str(number): {"content": name, **flags} for number, name in tokens.items()}
        changed[TOKENIZER_CONFIG] = _as_json(settings)
    elif TOKENIZER_JSON not in files:
        changed[ADDED_TOKENS] = _as_json({**json.loads(files.get(ADDED_TOKENS, b"{}")), **names})
    return changed


def _as_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _with_role(settings: Mapping[str, Any]) -> list[Any]:
    """Return the special tokens of the usual roles, and of roles that only this model has."""
    extra = settings.get("extra_special_tokens")
    own = [value for name, value in settings.items() if name.endswith("_token") and name not in ROLES]
    own += extra.values() if isinstance(extra, dict) else ()
    return [*(settings.get(role) for role in ROLES), *(value for value in own if isinstance(value, str))]


def _without_role(settings: Mapping[str, Any]) -> list[Any]:
    """Return the special tokens without a role."""
    extra = settings.get("extra_special_tokens")
    return extra if isinstance(extra, list) else []
