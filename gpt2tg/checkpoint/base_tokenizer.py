"""Build a tokenizer from its vocabulary files: tokenizer.json, vocab.json with merges.txt, or BERT's vocab.txt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from gpt2tg.checkpoint.added_tokens import parse_token
from gpt2tg.checkpoint.file_names import MERGES, TOKENIZER_JSON, VOCABULARY, WORD_PIECES

END_OF_TEXT = "<|endoftext|>"

# The tokenizer classes of transformers that a checkpoint has unless its files name another one.
GPT2_CLASS, BERT_CLASS = "GPT2Tokenizer", "BertTokenizer"


def build_base(
    directory: Path, vocabulary: tuple[str, ...], settings: Mapping[str, Any], rows: int
) -> tuple[Tokenizer, list[str]]:
    """Return the tokenizer that the vocabulary files describe, and the added tokens that were left out.

    Args:
        vocabulary: the names of the files.
        settings: the content of tokenizer_config.json, with defaults.
        rows: the rows of the model's embedding. Added tokens with ids beyond them are left out.

    Raises:
        Exception: a file is broken, as the tokenizers library raises it.
    """
    adds_space = settings.get("add_prefix_space") is True
    if TOKENIZER_JSON in vocabulary:
        raw, left_out = _from_tokenizer_json(directory / TOKENIZER_JSON, rows)
        # For this class transformers goes by the settings, whatever tokenizer.json says about the first word.
        if settings["tokenizer_class"] == GPT2_CLASS and isinstance(raw.pre_tokenizer, pre_tokenizers.ByteLevel):
            raw.pre_tokenizer.add_prefix_space = adds_space
        return raw, left_out
    if VOCABULARY in vocabulary:
        model = BPE.from_file(str(directory / VOCABULARY), str(directory / MERGES))
        return byte_level(model, adds_end=False, adds_space=adds_space), []
    return _word_pieces(directory / WORD_PIECES, settings), []


def _from_tokenizer_json(path: Path, rows: int) -> tuple[Tokenizer, list[str]]:
    raw = Tokenizer.from_file(str(path))
    if all(number < rows for number in raw.get_added_tokens_decoder()):
        return raw, []
    content = json.loads(path.read_text(encoding="utf-8"))
    known = raw.get_vocab(with_added_tokens=False)
    beyond = [t for t in content["added_tokens"] if t["id"] >= rows and t["content"] not in known]
    content["added_tokens"] = [token for token in content["added_tokens"] if token not in beyond]
    return Tokenizer.from_str(json.dumps(content)), [token["content"] for token in beyond]


def byte_level(model: BPE, adds_end: bool = True, adds_space: bool = False) -> Tokenizer:
    """Return a byte-level tokenizer as GPT-2's: bytes become letters, and words keep the space before them.

    Args:
        model: the byte-pair encoding.
        adds_end: whether to add the end-of-text token.
        adds_space: whether to put a space before a text that begins with a word.
    """
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=adds_space)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_end:
        tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    return tokenizer


def _word_pieces(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """Return a tokenizer as BERT's (Devlin et al. 2019): lower-case words, unless the settings differ, in pieces."""
    with path.open(encoding="utf-8") as file:
        vocabulary = {line.rstrip("\n"): number for number, line in enumerate(file)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=str(parse_token(settings.get("unk_token")))))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def add_template(raw: Tokenizer, settings: Mapping[str, Any], roles: Mapping[str, str]) -> None:
    """Make a tokenizer put special tokens before and after each text, as the settings ask for.

    Only for vocabulary files without a tokenizer.json, which holds its own template.

    Args:
        roles: the special tokens by role, such as `eos_token`.
    """
    if settings["tokenizer_class"] == BERT_CLASS:
        first, last = "cls_token", "sep_token"
    else:
        first, last = (f"{role}_token" if settings.get(f"add_{role}_token") else "" for role in ("bos", "eos"))
    before, after = ([roles[role]] if role in roles else [] for role in (first, last))
    if before or after:
        raw.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], special_tokens=[(name, raw.token_to_id(name)) for name in {*before, *after}]
        )
