"""/candidates and /why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from talk import Talk, greedy_options, sampling_options

from gpt2tg.generation.generator import Generator, load
from gpt2tg.inspection.tables import candidate_table
from gpt2tg.inspection.tokens import inspect_ids, next_token
from gpt2tg.session.style import Style
from gpt2tg.session.turns import Turn


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def test_candidates_after_the_text(generator: Generator) -> None:
    talk = Talk(generator, greedy_options())
    talk.type("The fox")
    assert talk.type("/candidates 4")[0] == candidate_table(next_token(generator, talk.text, 4)) + "\n"
    talk.type("/new")
    assert talk.type("/candidates")[0] == candidate_table(next_token(generator, "", 10)) + "\n"


def test_why_lists_the_least_likely_tokens(generator: Generator) -> None:
    talk = Talk(generator, sampling_options(seed=3))
    talk.type("The fox")
    turn = talk.session.text.turns[0]
    tokens = inspect_ids(generator, generator.encode("The fox"), turn.ids, 3)
    written, _ = talk.type("/why")
    text, legend, heading, *rows = [line for line in written.splitlines() if line]
    assert text.replace("[", "").replace("]", "") == turn.written.rstrip("\n")
    assert text.count("[") == sum(token.probability < 0.01 for token in tokens) > 0
    assert "below 1%" in legend
    mean = sum(token.logprob for token in tokens) / len(tokens)
    assert heading == f"{len(tokens)} tokens, mean log-probability {mean:.2f}, the least likely ones:"
    least = sorted(tokens, key=lambda token: token.probability)[:5]
    for row, token in zip(rows, least, strict=True):
        assert row.startswith(f"  {json.dumps(token.text, ensure_ascii=False)} ")
        assert f", rank {token.rank}; alternatives: " in row
        assert json.dumps(token.alternatives[0].text, ensure_ascii=False) in row
    assert talk.type("/why all")[0].startswith(talk.text[:1].replace("T", "[T") or "The")


def unusual_tokens(generator: Generator, text: str) -> tuple[int, ...]:
    """Return the text encoded letter by letter, unlike the tokenizer would."""
    ids = tuple(token for letter in text for token in generator.tokenizer.encode(letter))
    assert generator.tokenizer.decode(list(ids)) == text
    assert list(ids) != generator.tokenizer.encode(text)
    return ids


def test_why_uses_the_generated_tokens(generator: Generator, tmp_path: Path) -> None:
    """A model may generate a text in other tokens than the tokenizer encodes it to; a saved session keeps them."""
    ids = unusual_tokens(generator, " the fox")
    talk, file = Talk(generator, greedy_options()), tmp_path / "session.jsonl"
    talk.session.text.change((Turn("Once", " the fox", ids=ids),))
    assert f"{len(ids)} tokens, mean" in talk.type("/why")[0]
    talk.type(f"/save {file}", "/new", f"/load {file}")
    assert f"{len(ids)} tokens, mean" in talk.type("/why")[0]


def test_why_ends_at_a_stop_string(generator: Generator) -> None:
    ids = unusual_tokens(generator, " the fox ran")
    talk = Talk(generator, greedy_options())
    talk.session.text.change((Turn("Once", " the fox", ids=ids),))
    assert f"{len(ids) - 4} tokens, mean" in talk.type("/why")[0]


def test_why_encodes_a_text_with_unknown_tokens(generator: Generator) -> None:
    """Unknown: none, or those of another model."""
    talk, anew = Talk(generator, greedy_options()), len(generator.tokenizer.encode(" the fox"))
    for ids in ((), (5, 6, 7), (10**9,)):
        talk.session.text.change((Turn("Once", " the fox", ids=ids),))
        assert f"{anew} tokens, mean" in talk.type("/why")[0]


def test_generated_tokens_are_kept(generator: Generator) -> None:
    talk = Talk(generator, sampling_options(seed=3))
    talk.type("The fox")
    sample = generator.generate("The fox", sampling_options(seed=3))[0]
    assert talk.session.text.turns[0].ids == sample.ids
    talk.type("/set num_sequences=2", "The fox", "/pick 2")
    assert talk.session.text.turns[0].ids == talk.session.samples[1].ids


def test_improbable_tokens_are_coloured(generator: Generator) -> None:
    """Without the colour codes the text is unchanged; each improbable token has a background and a text colour."""
    style = Style(has_colours=True)
    assert style.heat(" sure", 0.9) == " sure"
    assert style.heat(" maybe", 0.1) == " \x1b[30;42mmaybe\x1b[0m"
    assert style.heat(" odd", 0.02) == " \x1b[30;43modd\x1b[0m"
    assert style.heat(" never", 0.001) == " \x1b[97;41mnever\x1b[0m"
    assert style.heat("\n", 0.001) == "\x1b[97;41m\\n\x1b[0m\n"
    assert style.heat("  ", 0.001) == "\x1b[97;41m  \x1b[0m"
    talk = Talk(generator, sampling_options(seed=3), style=style)
    written, _ = talk.type("The fox")
    assert written.startswith("\x1b[1mThe fox\x1b[0m")
    assert "\x1b[97;41m" in talk.type("/why")[0]
    assert talk.type("/shw")[1][0].startswith("\x1b[31merror:\x1b[0m unknown command")
