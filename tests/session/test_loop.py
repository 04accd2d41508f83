"""The loop: lines answered, hints, Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import pytest
from talk import Talk, greedy_options, greedy_text, transcript

from gpt2tg.generation.generator import Generator, load


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def test_prompt_is_continued(generator: Generator) -> None:
    written, messages = transcript(generator, greedy_options(), "The fox", "The owl")
    assert written == f"{greedy_text(generator, 'The fox')}\n{greedy_text(generator, 'The owl')}\n"
    assert messages == []


def test_continuation_is_streamed(generator: Generator) -> None:
    talk = Talk(generator, greedy_options())
    talk.type("The fox")
    assert len(talk.written) > 4


def test_prompt_of_several_lines(generator: Generator) -> None:
    assert transcript(generator, greedy_options(), "The fox\nand")[0] == greedy_text(generator, "The fox\nand") + "\n"


def test_prompt_that_begins_with_a_slash(generator: Generator) -> None:
    assert transcript(generator, greedy_options(), "//fox")[0] == greedy_text(generator, "/fox") + "\n"


def test_blank_lines_are_ignored(generator: Generator) -> None:
    assert transcript(generator, greedy_options(), "", "   ") == ("", [])


def test_quit_ends_the_session_at_once(generator: Generator) -> None:
    for word in ("/quit", "/quit now", "/exit", "/Quit"):
        assert transcript(generator, greedy_options(), word, "The fox") == ("", [])


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("quit", "/quit"),
        ("exit", "/quit"),
        ("Quit ", "/quit"),
        ("help", "/help"),
        ("?", "/help"),
        ("temperature=0.5", "/set temperature=0.5"),
        ("set top-p=0.5", "/set top-p=0.5"),
    ],
)
def test_command_without_slash_gives_a_hint(generator: Generator, word: str, meant: str) -> None:
    """At a terminal the user forgot the slash; in piped input the word is a prompt."""
    written, messages = transcript(generator, greedy_options(), word)
    assert written == ""
    assert messages == [f"Did you mean {meant}? To begin a text with these words: /new {word.strip()}"]
    assert transcript(generator, greedy_options(), "x=1")[1] == []
    piped, _ = Talk(generator, greedy_options(), at_terminal=False).type(word)
    assert piped == greedy_text(generator, word) + "\n"


def test_ctrl_c_stops_a_text_and_keeps_it(generator: Generator) -> None:
    """Ctrl-C comes while the third piece is written."""
    talk = Talk(generator, greedy_options())
    talk.interrupt_after = 4
    written, messages = talk.type("The fox", KeyboardInterrupt(), "/text")
    assert messages == ["stopped", ""]
    kept = talk.text
    assert greedy_text(generator, "The fox").startswith(kept)
    assert len("The fox") < len(kept) < len(greedy_text(generator, "The fox"))
    assert written == f"{kept}\n{kept}\n"
    assert talk.type("/continue")[0] == greedy_text(generator, kept).removeprefix(kept) + "\n"


def test_ctrl_c_ends_a_session_on_a_pipe(generator: Generator) -> None:
    talk = Talk(generator, greedy_options(), at_terminal=False)
    talk.interrupt_after = 4
    with pytest.raises(KeyboardInterrupt):
        talk.type("The fox", "The owl")
