"""What the model thinks: of what comes next, and of what was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpt2tg.errors import UserError
from gpt2tg.inspection.tables import candidate_table, percent, quoted
from gpt2tg.inspection.tokens import InspectedToken, inspect_ids, next_token
from gpt2tg.session.settings import number

if TYPE_CHECKING:
    from gpt2tg.session.session import Session
    from gpt2tg.session.state import Turn

# How many tokens /candidates shows unless told, how many /why explains, and with how many alternatives.
CANDIDATES, LEAST_LIKELY, ALTERNATIVES = 10, 5, 3


def candidates(session: Session, words: str) -> None:
    """The most probable tokens after the text."""
    count = number(words, None, "how many tokens") if words else CANDIDATES
    found = next_token(session.generator, str(session.text), count, session.options.overflow)
    session.front.write(candidate_table(found) + "\n")


def why(session: Session, words: str) -> None:
    """The last turn, or the whole text, by the probability of its tokens."""
    if words not in ("", "all"):
        raise UserError(f"{words} is nothing to explain: write /why or /why all")
    turns = session.text.turns
    if not turns:
        raise UserError("there is no text yet: type its beginning")
    before, text = ("", str(session.text)) if words else (session.text.before_last + turns[-1].typed, turns[-1].written)
    context = session.generator.encode(before)
    ids = session.generator.tokenizer.encode(text) if words else _written_ids(session, context, turns[-1])
    if not ids:
        raise UserError("nothing was written here: /why all explains the whole text")
    tokens = inspect_ids(session.generator, context, ids, ALTERNATIVES)
    style, write = session.front.style, session.front.write
    shown = session.front.style.shown
    with session.front.text() as write_text:
        write_text("".join(style.heat(shown(token.text), token.probability) for token in tokens).rstrip("\n"))
    write("\n\n")
    mean = sum(token.logprob for token in tokens) / len(tokens)
    write(f"{style.legend()}\n{len(tokens)} tokens, mean log-probability {mean:.2f}, the least likely ones:\n")
    for token in sorted(tokens, key=lambda token: token.logprob)[:LEAST_LIKELY]:
        write(f"  {_explained(token)}\n")


def _written_ids(session: Session, context: Sequence[int], turn: Turn) -> Sequence[int]:
    """The tokens that were written after a context, up to a stop string; where they are not known, those of the text
    read anew.

    Another model may have taken over: tokens that are not the text in its vocabulary are none of its own.
    """
    tokenizer = session.generator.tokenizer
    ids = [token for token in turn.ids if token not in tokenizer.special]
    ends = (end for end in range(len(ids), 0, -1) if tokenizer.decode_after(context, ids[:end]) == turn.written)
    return ids[:end] if (end := next(ends, None)) else tokenizer.encode(turn.written, continues=True)


def _explained(token: InspectedToken) -> str:
    others = [
        f"{quoted(other.text)} {percent(other.probability)}" for other in token.alternatives if other.id != token.id
    ]
    return f"{quoted(token.text)} {percent(token.probability)}, rank {token.rank}; likely were {', '.join(others)}"
