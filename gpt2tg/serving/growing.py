"""A node that is being generated: its text, its tokens as they become known, and what is not saved yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gpt2tg.checkpoint.text_stream import TextStream
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.generation.requests import Request
from gpt2tg.generation.samples import Sample
from gpt2tg.inspection.tokens import InspectedToken
from gpt2tg.serving.jobs import Progress, ScoredToken

# JSON tokens, as the page reads them.
Tokens = list[dict[str, Any]]


# The end of a text that was cut: the reason, and no tokens.
INTERRUPTED: tuple[str, Sequence[int]] = ("interrupted", ())


class TokenWriter:
    """Writes tokens as JSON."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._names: dict[tuple[int, bool], str] = {}

    def scored(self, token: ScoredToken, text: str, begins: bool) -> dict[str, Any]:
        """Return a token of the live batch. Its rank is known if it is among the alternatives.

        Args:
            begins: whether it begins the whole text.
        """
        better = [logprob for _, logprob in token.alternatives if logprob > token.logprob]
        rank = 1 + len(better) if len(better) < len(token.alternatives) else None
        others = [self._alternative(id, math.exp(logprob), begins) for id, logprob in token.alternatives]
        return _token(token.id, text, token.logprob, rank, None, others)

    def inspected(self, token: InspectedToken, begins: bool) -> dict[str, Any]:
        """Return a token that was measured."""
        others = [self._alternative(other.id, other.probability, begins) for other in token.alternatives]
        return _token(token.id, token.text, token.logprob, token.rank, token.entropy, others)

    def _alternative(self, id: int, probability: float, begins: bool) -> dict[str, Any]:
        key = (id, begins)
        if key not in self._names:
            self._names[key] = self._tokenizer.name(id, begins)
        special = {"is_special": True} if id in self._tokenizer.special else {}
        return {"id": id, "text": self._names[key], "probability": _short(probability), **special}


def _token(
    id: int, text: str, logprob: float, rank: int | None, entropy: float | None, alternatives: Tokens
) -> dict[str, Any]:
    return {
        "id": id,
        "text": text,
        "logprob": round(logprob, 5) if math.isfinite(logprob) else None,
        "rank": rank,
        "entropy": None if entropy is None else round(entropy, 4),
        "alternatives": alternatives,
    }


def _short(probability: float) -> float:
    """Round to five significant digits, to keep answers small."""
    return float(f"{probability:.5g}")


class GrowingNode:
    """The text of a node, while reports of it come in."""

    def __init__(self, node: int, request: Request, tokenizer: TextTokenizer, writer: TokenWriter) -> None:
        self.node = node
        self.sample: Sample | None = None
        """The finished text."""
        self._writer, self._stream = writer, TextStream(tokenizer, request.ids)
        self._begins = not tokenizer.decode(request.ids)
        self._shown = ""
        self._pending: list[tuple[ScoredToken, int]] = []  # tokens not yet written, and the lengths of their texts
        self._written = 0  # characters of the tokens written
        self._unsaved: list[tuple[str, Tokens]] = []

    def add(self, report: Progress) -> tuple[str, Tokens]:
        """Add a report. Returns the piece of text, and the tokens that are complete with it.

        The texts of all tokens, joined, are the text: a token whose end is held back comes with a later piece.
        """
        self._shown += report.piece
        self.sample = report.sample or self.sample
        self._pending += [(token, len(self._stream.push(token.id))) for token in report.tokens]
        if report.sample is not None and self._pending:
            token, length = self._pending[-1]
            self._pending[-1] = token, length + len(self._stream.finish())
        tokens = self._take()
        if report.piece or tokens:
            self._unsaved.append((report.piece, tokens))
        return report.piece, tokens

    def add_inspected(self, tokens: Sequence[InspectedToken]) -> None:
        """Add the tokens of the finished text, which were measured afterwards."""
        written: Tokens = []
        start = 0
        for token in tokens:
            if start >= len(self._shown) and written:
                break
            found = self._writer.inspected(token, self._begins and not written)
            written.append({**found, "text": self._shown[start : start + len(token.text)]})
            start += len(token.text)
        self._unsaved.append(("", written))

    @property
    def end(self) -> tuple[str, Sequence[int]]:
        """Why the text has ended, and all its tokens."""
        return INTERRUPTED if self.sample is None else (self.sample.finish_reason, self.sample.ids)

    def unsaved(self) -> list[tuple[str, Tokens]]:
        """Return the pieces and tokens that are not saved yet. The thread that saves may call it meanwhile."""
        return list(self._unsaved)

    def note_saved(self, count: int) -> None:
        """Forget so many of the pieces, since they are saved."""
        del self._unsaved[:count]

    def _take(self) -> Tokens:
        taken: Tokens = []
        is_over, end = self.sample is not None, len(self._shown)
        while self._pending and (is_over or self._written + self._pending[0][1] <= end):
            token, length = self._pending.pop(0)
            text = self._shown[self._written : self._written + length]
            if is_over and self._written >= end:  # the token that ended the text, or those of a stop string
                continue
            taken.append(self._writer.scored(token, text, self._begins and not self._written))
            self._written += length
        return taken
