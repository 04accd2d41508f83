"""Scan a split of a dataset: from local files, or over the network, tokenizing at the same time."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from gpt2tg.checkpoint.checkpoint import resolve_checkpoint
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
from gpt2tg.errors import UserError
from gpt2tg.reading.file_types import check_text_column
from gpt2tg.training.console import log
from gpt2tg.training.data.corpus import Corpus, CorpusScan, scan_files
from gpt2tg.training.data.dataset_files import DatasetFiles, DatasetOrigin
from gpt2tg.training.data.file_pass import TextFormat
from gpt2tg.training.data.token_cache import cached, fingerprint, write_tokens
from gpt2tg.training.output.durable import read_manifest

# What a scan found, beside the tokens that were made with it: a hash and a size for each example.
SURVEY_FILE = "survey.npz"

# What its manifest says of the text besides.
HAS_CONVERSATIONS = "has_conversations"
FACTS = ("bytes", "text_bytes", "learned_bytes", "empty", "garbled", "digest", "file_digests", "notices")


@dataclass(frozen=True)
class DatasetScan:
    """How to scan the splits of a dataset."""

    dataset: DatasetFiles
    text_format: TextFormat
    is_streaming: bool
    model_name: str | None  # whose tokenizer makes the tokens while streaming; None to make them later
    add_tokens: tuple[str, ...] = ()  # to that tokenizer

    def scan(self, split: str, origin: DatasetOrigin) -> Corpus:
        """Return what a split holds.

        Args:
            origin: kept with the result.

        Raises:
            UserError: a file cannot be read, or the download fails.
        """
        files = self._files(split)
        check_text_column(self.text_format.text_column, *files)
        notices = (f"{self._shown_name()}: reading the split {split}",)
        if self._is_remote and self.model_name is not None:
            found = self._stream(files, load_tokenizer_of(self.model_name, self.add_tokens), notices)
        else:
            found = scan_files(files, self.text_format, "dataset_name", notices)
        return dataclasses.replace(found, origin=origin)

    @property
    def _is_remote(self) -> bool:
        return self.is_streaming and self.dataset.commit is not None

    def _shown_name(self) -> str:
        commit = self.dataset.commit
        return self.dataset.name if commit is None else f"{self.dataset.name}, commit {commit[:12]}"

    def _files(self, split: str) -> tuple[Path, ...]:
        if self.dataset.commit is None:
            return tuple(map(Path, self.dataset.splits[split]))
        from gpt2tg.training.data.hub_datasets import download, remote_files

        if self.is_streaming:
            return cast("tuple[Path, ...]", remote_files(self.dataset, split))  # they have what is needed of a path
        return download(self.dataset, split)

    def _stream(self, files: tuple[Path, ...], tokenizer: TextTokenizer, notices: tuple[str, ...]) -> Corpus:
        """Scan and tokenize in one pass over the network. Later runs find both in the cache."""
        digest = self._stream_digest(files)

        def write(directory: Path) -> dict[str, Any]:
            log.info(f"tokenizing {self._shown_name()} while it is downloaded")
            scan = CorpusScan(files, self.text_format, "dataset_name", notices)
            write_tokens(directory, scan.pieces(), None, tokenizer)
            found = scan.corpus()
            np.savez(directory / SURVEY_FILE, hashes=found.hashes, sizes=found.sizes)
            facts = {fact: getattr(found, fact) for fact in FACTS}
            return {"text": self._shown_name(), HAS_CONVERSATIONS: found.chat_template is not None, **facts}

        tokens = cached(fingerprint(digest, tokenizer), write, (SURVEY_FILE,))
        manifest = read_manifest(tokens.directory)
        if manifest[HAS_CONVERSATIONS]:
            _ = self.text_format.conversations.template  # counts as used, as if they had been read now
        facts = {fact: manifest[fact] for fact in FACTS}
        facts |= {fact: tuple(facts[fact]) for fact in ("file_digests", "notices")}
        with np.load(tokens.directory / SURVEY_FILE) as survey:
            arrays = {array: survey[array] for array in ("hashes", "sizes")}
        return Corpus(
            files, option="dataset_name", text_format=self.text_format, stream_digest=digest, **facts, **arrays
        )

    def _stream_digest(self, files: tuple[Path, ...]) -> str:
        """Return a hash of everything that the text depends on, without reading it."""
        templates = copy.copy(self.text_format.conversations)  # the original one is used if a conversation is read
        with contextlib.suppress(UserError):  # it is reported if a conversation is read
            _ = templates.template
        read_as = (self.text_format.examples, self.text_format.text_column, templates.key)
        source = repr((self.dataset.commit, list(map(str, files)), read_as))
        return hashlib.sha256(source.encode()).hexdigest()


def load_tokenizer_of(model_name: str, added: tuple[str, ...] = ()) -> TextTokenizer:
    """Return the tokenizer of a model, as it is for training.

    Args:
        added: tokens to add to its vocabulary.

    Raises:
        UserError: there is no such model, or its tokenizer cannot be used.
    """
    checkpoint = resolve_checkpoint(model_name)
    tokenizer = load_tokenizer(checkpoint.directory, checkpoint.shape.vocab_size, checkpoint.shape.end_ids)
    if added:
        from gpt2tg.training.model.new_tokens import extend  # imports torch

        extend(tokenizer, added)
    return tokenizer
