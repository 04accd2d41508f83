"""A tokenizer as the files of a checkpoint describe it.

tokenizer.json holds a whole tokenizer. Older checkpoints hold vocab.json with merges.txt, or the vocab.txt of BERT.
Beside them tokenizer_config.json, special_tokens_map.json and added_tokens.json name further tokens and settings. What
is made of all this is what the AutoTokenizer of transformers makes of it, id for id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from gpt2tg.checkpoint.adapters import is_adapter
from gpt2tg.checkpoint.find import base_directory
from gpt2tg.checkpoint.hub import vocabulary_among
from gpt2tg.errors import UserError
from gpt2tg.io.json_files import read_json
from gpt2tg.io.lfs import refuse_pointer

END_OF_TEXT = "<|endoftext|>"

WHOLE, VOCABULARY, MERGES, WORD_PIECES = "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"
SETTINGS, SPECIAL_TOKENS, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"

# The special tokens that have a role, by the names that the files give them.
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# What `extra_special_tokens` was called in transformers 4.
OLD_EXTRA = "additional_special_tokens"

# The class of tokenizers that a GPT-2 has unless its files name another, and the roles that are filled by default.
GPT2_CLASS, BERT_CLASS = "GPT2Tokenizer", "BertTokenizer"
DEFAULT_ROLES = {
    GPT2_CLASS: dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
    BERT_CLASS: {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")},
}


@dataclass(frozen=True)
class FoundTokenizer:
    """What the files of a checkpoint say of its tokenizer."""

    raw: Tokenizer
    roles: dict[str, str]
    """The tokens that have a role, such as `eos_token`, as far as the tokenizer knows them."""
    cleans_up: bool
    """Whether spaces before punctuation are taken out of what is decoded."""
    left_out: tuple[str, ...]
    """Added tokens that the model has no rows for."""
    moved: tuple[str, ...]
    """Added tokens that have another id than the files give them."""


def tokenizer_directory(directory: Path) -> Path:
    """Where the tokenizer of a model is: an adapter may leave it to the model it was trained on.

    Raises:
        UserError: there is none.
    """
    if _vocabulary(directory):
        return directory
    if is_adapter(directory):
        return tokenizer_directory(base_directory(directory))
    raise UserError(
        f"{directory} holds no tokenizer: expected {WHOLE}, or {VOCABULARY} with {MERGES}, or {WORD_PIECES}; "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers writes one from most other files"
    )


def _vocabulary(directory: Path) -> tuple[str, ...]:
    return vocabulary_among({path.name for path in directory.iterdir() if path.is_file()})


def read_tokenizer(directory: Path, rows: int) -> FoundTokenizer:
    """Read all that the files say.

    Args:
        rows: of the model's embedding. Added tokens beyond them are left out: the model cannot read them.

    Raises:
        UserError: the files are missing or broken.
    """
    directory = tokenizer_directory(directory)
    settings = _settings(directory)
    try:
        raw, beyond = _base(directory, settings, rows)
        listed = _listed(directory, settings)
        left_out = {*beyond, *_add(raw, _wanted(listed, settings, raw), rows)}
        raw.no_padding()
        raw.no_truncation()
        raw.encode_special_tokens = settings.get("split_special_tokens") is True
        roles = {role: str(token) for role in ROLES if (token := _token(settings.get(role))) is not None}
        roles = {role: name for role, name in roles.items() if raw.token_to_id(name) is not None}
        if not (directory / WHOLE).is_file():
            _frame(raw, settings, roles)
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exception for broken files
        raise UserError(f"{directory}: the tokenizer cannot be read: {error}") from None
    moved = (token.content for number, token in listed.items() if raw.token_to_id(token.content) not in (number, None))
    return FoundTokenizer(raw, roles, _cleans_up(raw, settings), tuple(sorted(left_out)), tuple(moved))


def _settings(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json with the defaults of its class, and special_tokens_map.json where that counts."""
    settings = _object(directory / SETTINGS)
    name = settings.get("tokenizer_class") or _object(directory / "config.json").get("tokenizer_class")
    if not isinstance(name, str):
        name = BERT_CLASS if _vocabulary(directory) == (WORD_PIECES,) else GPT2_CLASS
    name = name.removesuffix("Fast")
    settings["extra_special_tokens"] = settings.get("extra_special_tokens") or settings.pop(OLD_EXTRA, None)
    if "added_tokens_decoder" not in settings:
        settings |= _object(directory / SPECIAL_TOKENS)
    settings["extra_special_tokens"] = settings["extra_special_tokens"] or settings.get(OLD_EXTRA)
    return {**DEFAULT_ROLES.get(name, {}), **settings, "tokenizer_class": name}


def _object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _base(directory: Path, settings: Mapping[str, Any], rows: int) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of the main files, and the added tokens of theirs that are left out."""
    vocabulary = _vocabulary(directory)
    for name in vocabulary:
        refuse_pointer(directory / name)
    if WHOLE in vocabulary:
        raw, beyond = _whole(directory / WHOLE, rows)
        # This class goes by its settings, not by what its file says of the first word.
        if settings["tokenizer_class"] == GPT2_CLASS and isinstance(raw.pre_tokenizer, pre_tokenizers.ByteLevel):
            raw.pre_tokenizer.add_prefix_space = settings.get("add_prefix_space") is True
        return raw, beyond
    if VOCABULARY in vocabulary:
        model = BPE.from_file(str(directory / VOCABULARY), str(directory / MERGES))
        return byte_level(model, adds_end=False, adds_space=settings.get("add_prefix_space") is True), []
    return _word_pieces(directory / WORD_PIECES, settings), []


def _whole(path: Path, rows: int) -> tuple[Tokenizer, list[str]]:
    raw = Tokenizer.from_file(str(path))
    if all(number < rows for number in raw.get_added_tokens_decoder()):
        return raw, []
    content = json.loads(path.read_text(encoding="utf-8"))
    known = raw.get_vocab(with_added_tokens=False)
    beyond = [t for t in content["added_tokens"] if t["id"] >= rows and t["content"] not in known]
    content["added_tokens"] = [token for token in content["added_tokens"] if token not in beyond]
    return Tokenizer.from_str(json.dumps(content)), [token["content"] for token in beyond]


def byte_level(model: BPE, adds_end: bool = True, adds_space: bool = False) -> Tokenizer:
    """GPT-2's way around a byte-pair encoding: bytes as letters, words split with their leading space.

    Args:
        adds_end: whether the end-of-text token is added.
        adds_space: whether a text that begins with a word gets a space before it.
    """
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=adds_space)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_end:
        tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    return tokenizer


def _word_pieces(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """Devlin et al. 2019, "BERT": words of lower case unless the settings say otherwise, cut into pieces."""
    with path.open(encoding="utf-8") as file:
        vocabulary = {line.rstrip("\n"): number for number, line in enumerate(file)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=str(_token(settings.get("unk_token")))))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _frame(raw: Tokenizer, settings: Mapping[str, Any], roles: Mapping[str, str]) -> None:
    """Let the tokenizer put the tokens around a text that older files leave to their settings; a tokenizer.json says
    so itself."""
    if settings["tokenizer_class"] == BERT_CLASS:
        first, last = "cls_token", "sep_token"
    else:
        first, last = (f"{role}_token" if settings.get(f"add_{role}_token") else "" for role in ("bos", "eos"))
    before, after = ([roles[role]] if role in roles else [] for role in (first, last))
    if before or after:
        raw.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], special_tokens=[(name, raw.token_to_id(name)) for name in {*before, *after}]
        )


def _listed(directory: Path, settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The tokens that files beside the tokenizer list with their ids."""
    if "added_tokens_decoder" in settings:
        file, entries = SETTINGS, settings["added_tokens_decoder"]
        if not isinstance(entries, dict):
            raise UserError(f"{directory / file}: added_tokens_decoder is no object")
        tokens = {number: _token(value, special=False) for number, value in entries.items()}
    else:
        file, entries = ADDED_TOKENS, _object(directory / ADDED_TOKENS)
        special = {str(_token(value)) for value in (*_with_role(settings), *_extra(settings))}
        tokens = {number: _token(name, special=name in special) for name, number in entries.items()}
    for number, token in tokens.items():
        if token is None or not str(number).isdecimal():
            raise UserError(f"{directory / file}: expected tokens with their ids, found {number}: {token}")
    return {int(number): token for number, token in tokens.items() if token is not None}


def _wanted(listed: Mapping[int, AddedToken], settings: Mapping[str, Any], raw: Tokenizer) -> Iterator[AddedToken]:
    """The tokens that the files beside the tokenizer add to it, in the order of their ids."""
    there = raw.get_added_tokens_decoder()
    with_role = [token for value in _with_role(settings) if (token := _token(value)) is not None]
    known, named = {repr(token) for token in there.values()}, {token.content for token in with_role}
    for _, token in sorted({**there, **listed}.items()):
        if token.content in named:
            token.special = True
        if repr(token) not in known:
            yield token
    listed_names = {token.content for token in (*there.values(), *listed.values())}
    for token in (*with_role, *filter(None, map(_token, _extra(settings)))):
        if token.content not in listed_names:
            yield token


def _with_role(settings: Mapping[str, Any]) -> list[Any]:
    """The special tokens of the usual roles, and of roles that only this model has."""
    extra = settings.get("extra_special_tokens")
    own = [value for name, value in settings.items() if name.endswith("_token") and name not in ROLES]
    own += extra.values() if isinstance(extra, dict) else ()
    return [*(settings.get(role) for role in ROLES), *(value for value in own if isinstance(value, str))]


def _extra(settings: Mapping[str, Any]) -> list[Any]:
    """Special tokens without a role."""
    extra = settings.get("extra_special_tokens")
    return extra if isinstance(extra, list) else []


def _token(value: Any, special: bool = True) -> AddedToken | None:
    """A token as the files write it: its name, or an object that holds the name and how it is found in a text."""
    if isinstance(value, str):
        return AddedToken(value, special=special, normalized=not special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return None
    flags = {name: value[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in value}
    return AddedToken(value["content"], special=value.get("special", special), **flags)


def _add(raw: Tokenizer, tokens: Iterator[AddedToken], rows: int) -> list[str]:
    """Add tokens as far as the model has rows for them. Returns the names of the others."""
    taken = max((*raw.get_added_tokens_decoder(), raw.get_vocab_size(with_added_tokens=False) - 1))
    kept, left_out = [], []
    for token in tokens:
        if raw.token_to_id(token.content) is None:
            if taken + 1 >= rows:
                left_out.append(token.content)
                continue
            taken += 1
        kept.append(token)
    raw.add_tokens(kept)
    return left_out


def _cleans_up(raw: Tokenizer, settings: Mapping[str, Any]) -> bool:
    """As transformers decides it: never with byte-pair encodings, whose texts have no spaces too many."""
    forced = settings.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output") is True
    return settings.get("clean_up_tokenization_spaces") is True and (forced or not isinstance(raw.model, BPE))
