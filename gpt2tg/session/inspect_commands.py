"""Commands that show the model's probabilities: of the next token, and of the tokens it generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpt2tg.errors import UserError
from gpt2tg.inspection.tables import candidate_table, percent, quoted
from gpt2tg.inspection.tokens import InspectedToken, inspect_ids, next_token
from gpt2tg.session.session import Session
from gpt2tg.session.turns import Turn
from gpt2tg.session.words import parse_number

# Tokens that /candidates shows by default.
CANDIDATES = 10
# Tokens that /why lists, and the alternatives it shows for each.
LEAST_LIKELY, ALTERNATIVES = 5, 3


def candidates(session: Session, words: str) -> None:
    """Write the most probable tokens after the text."""
    count = parse_number(words, None, "number of tokens") if words else CANDIDATES
    found = next_token(session.generator, session.prompt_of(session.text.turns), count, session.options.overflow)
    session.front.write(candidate_table(found) + "\n")


def why(session: Session, words: str) -> None:
    """Write the last turn or the whole text with its improbable tokens marked, and list the least likely ones."""
    tokens = _inspect_turn_or_text(session, words)
    style, write = session.front.style, session.front.write
    with session.front.open_text() as write_text:
        write_text("".join(style.heat(style.safe(token.text), token.probability) for token in tokens).rstrip("\n"))
    write("\n\n")
    mean = sum(token.logprob for token in tokens) / len(tokens)
    write(f"{style.legend()}\n{len(tokens)} tokens, mean log-probability {mean:.2f}, the least likely ones:\n")
    for token in sorted(tokens, key=lambda token: token.logprob)[:LEAST_LIKELY]:
        write(f"  {_describe(token)}\n")


def _inspect_turn_or_text(session: Session, words: str) -> list[InspectedToken]:
    """Return the tokens of the last turn, or with `all` those of the whole text, with their probabilities."""
    if words not in ("", "all"):
        raise UserError(f"unknown argument {words}: write /why or /why all")
    turns = session.text.turns
    if not turns:
        raise UserError("there is no text yet: type its beginning")
    if words:
        whole = session.prompt_of(turns)
        context, ids = session.generator.encode(""), session.generator.tokenizer.encode(whole)
    else:
        context = session.generator.encode(session.prompt_of((*turns[:-1], replace(turns[-1], written=""))))
        ids = _generated_ids(session, context, turns[-1])
    if not ids:
        raise UserError("the last turn has no generated text: /why all shows the whole text")
    return inspect_ids(session.generator, context, ids, ALTERNATIVES)


def _generated_ids(session: Session, context: Sequence[int], turn: Turn) -> list[int]:
    """Return the tokens of a turn up to its stop string, or its text encoded again if they are not known.

    They are not known if the turn was interrupted, or if another model with another vocabulary is loaded now: then
    the turn's ids do not decode to its text.
    """
    tokenizer = session.generator.tokenizer
    ids = [token for token in turn.ids if token not in tokenizer.special]
    ends = (end for end in range(len(ids), 0, -1) if tokenizer.decode_after(context, ids[:end]) == turn.written)
    end = next(ends, None)
    return list(tokenizer.encode(turn.written, continues=True)) if end is None else ids[:end]


def _describe(token: InspectedToken) -> str:
    others = ", ".join(
        f"{quoted(other.text)} {percent(other.probability)}" for other in token.alternatives if other.id != token.id
    )
    return f"{quoted(token.text)} {percent(token.probability)}, rank {token.rank}; alternatives: {others}"
