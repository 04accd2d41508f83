"""Inspected tokens as tables for the terminal, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gpt2tg.inspection.tokens import Candidate, InspectedToken, NextToken
from gpt2tg.io.tables import aligned

# Five characters wide, so that tables of different texts are aligned alike: GPT-2 has 50,257 tokens.
RANK = " rank"


def token_table(tokens: Sequence[InspectedToken]) -> str:
    """Return a table with one line per token: probability, rank, entropy of its position in nats, and the token."""
    rows = [["probability", RANK, "entropy", "token"]]
    rows += [
        [percent(token.probability), str(token.rank), f"{token.entropy:.2f}", quoted(token.text)] for token in tokens
    ]
    return "\n".join(aligned(rows, left={3}))


def candidate_table(found: NextToken) -> str:
    """Return a table of the most probable next tokens, the most probable first."""
    rows = [[RANK, "probability", "token"]]
    rows += [[str(token.rank), percent(token.probability), quoted(token.text)] for token in found.candidates]
    rest = 1 - sum(candidate.probability for candidate in found.candidates)
    return "\n".join(
        [*aligned(rows, left={2}), f"all other tokens {percent(max(rest, 0))}, entropy {found.entropy:.2f} nats"]
    )


def token_entry(token: InspectedToken) -> dict[str, Any]:
    """Return a token as a JSON object."""
    return {
        "text": token.text,
        "id": token.id,
        "probability": token.probability,
        "logprob": token.logprob,
        "rank": token.rank,
        "entropy": token.entropy,
    }


def candidate_entry(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate as a JSON object."""
    return {
        "text": candidate.text,
        "id": candidate.id,
        "probability": candidate.probability,
        "rank": candidate.rank,
    }


def percent(probability: float) -> str:
    """Return a probability as a percentage. One that is not zero is never shown as zero."""
    return "< 0.01 %" if 0 < probability < 0.00005 else f"{100 * probability:.2f} %"


def quoted(text: str) -> str:
    """Return a token in quotes, with control characters escaped: a terminal would obey them."""
    return json.dumps(text, ensure_ascii=False).translate({code: f"\\u{code:04x}" for code in range(127, 160)})
