"""Inspected tokens as tables that a person reads, and as entries of records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gpt2tg.inspection.tokens import Candidate, InspectedToken, NextToken


def token_table(tokens: Sequence[InspectedToken]) -> str:
    """A line for each token: its probability, its rank, the entropy of its place in nats, and itself in quotes."""
    lines = ["probability   rank  entropy  token"]
    lines += [
        f"{percent(token.probability):>11}  {token.rank:>5}  {token.entropy:7.2f}  {quoted(token.text)}"
        for token in tokens
    ]
    return "\n".join(lines)


def candidate_table(found: NextToken) -> str:
    """A line for each token that may come next, the most probable first."""
    lines = [" rank  probability  token"]
    lines += [
        f"{candidate.rank:>5}  {percent(candidate.probability):>11}  {quoted(candidate.text)}"
        for candidate in found.candidates
    ]
    rest = 1 - sum(candidate.probability for candidate in found.candidates)
    return "\n".join([*lines, f"all other tokens {percent(max(rest, 0))}, entropy {found.entropy:.2f} nats"])


def token_entry(token: InspectedToken) -> dict[str, Any]:
    """A token as JSON has it."""
    return {
        "text": token.text,
        "id": token.id,
        "probability": token.probability,
        "logprob": token.logprob,
        "rank": token.rank,
        "entropy": token.entropy,
    }


def candidate_entry(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON has it."""
    return {
        "text": candidate.text,
        "id": candidate.id,
        "probability": candidate.probability,
        "rank": candidate.rank,
    }


def percent(probability: float) -> str:
    """A probability as a person reads it; one that is not zero never looks like it."""
    return "< 0.01 %" if 0 < probability < 0.00005 else f"{100 * probability:.2f} %"


def quoted(text: str) -> str:
    """A token in quotes: its spaces and line breaks are seen, and nothing is left that a terminal would obey."""
    return json.dumps(text, ensure_ascii=False).translate({code: f"\\u{code:04x}" for code in range(127, 160)})
