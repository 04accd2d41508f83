"""The interactive session, by transcript: what is typed in, what comes out on which stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2tg.errors import UserError
from gpt2tg.generation import Generator, load
from gpt2tg.options import DecodingOptions, decoding_options
from gpt2tg.session import HELP, Session, changed


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def settings(**given: object) -> DecodingOptions:
    return decoding_options({"decoding": "greedy", "max_new_tokens": 8, **given}, num_sequences=1)


def transcript(generator: Generator, options: DecodingOptions, *lines: object) -> tuple[str, list[str]]:
    """What the session writes and what it says while these lines are typed; an exception is raised as typed."""
    written: list[str] = []
    said: list[str] = []
    typed = iter(lines)

    def read() -> str:
        line = next(typed, EOFError())
        if isinstance(line, BaseException):
            raise line
        return str(line)

    Session(generator, options, "tiny", written.append, said.append).run(read)
    return "".join(written), said


def greedy_text(generator: Generator, prompt: str) -> str:
    return generator.generate(prompt, settings())[0].text


def test_a_prompt_is_continued(generator: Generator) -> None:
    written, said = transcript(generator, settings(), "The fox", "The owl")
    assert written == f"{greedy_text(generator, 'The fox')}\n{greedy_text(generator, 'The owl')}\n"
    assert said == []


def test_the_continuation_is_streamed(generator: Generator) -> None:
    pieces: list[str] = []
    lines = iter(["The fox"])

    def read() -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    Session(generator, settings(), "tiny", pieces.append, lambda _: None).run(read)
    assert len(pieces) > 3


def test_quit_leaves_at_once(generator: Generator) -> None:
    assert transcript(generator, settings(), "/quit now", "The fox") == ("", [])
    assert transcript(generator, settings(), "/quit", "The fox") == ("", [])


def test_settings_are_changed_shown_and_used(generator: Generator) -> None:
    written, said = transcript(
        generator, settings(), "/set decoding=top_p top-p=0.5 seed=3", "The fox", "/set seed=none", "/show"
    )
    wanted = settings(decoding="top_p", top_p=0.5, seed=3)
    assert written == generator.generate("The fox", wanted)[0].text + "\n"
    assert "decoding=top_p temperature=0.7 top_p=0.5" in said[0]
    assert said[1] == "(seed 3)"
    assert "seed=" not in said[3]


def test_the_seed_of_each_text_is_said_and_brings_it_back(generator: Generator) -> None:
    written, said = transcript(generator, settings(decoding="sample", temperature=1.0), "The fox")
    seed = int(said[0].removeprefix("(seed ").removesuffix(")"))
    again, _ = transcript(generator, settings(decoding="sample", temperature=1.0, seed=seed), "The fox")
    assert again == written


def test_a_replay_brings_back_one_text_of_several(generator: Generator) -> None:
    drawn = settings(decoding="sample", temperature=1.0, seed=7, num_sequences=3)
    third = generator.generate("The fox", drawn)[2]
    written, said = transcript(generator, settings(decoding="sample", temperature=1.0, replay="7/0/2"), "The fox")
    assert written == third.text + "\n"
    assert said == ["(replay 7/0/2)"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/shw", "error: no command /shw; did you mean /show?"),
        ("/xyzzy", "error: no command /xyzzy; /help lists them"),
        ("/set temprature=1", "error: no setting temprature; did you mean temperature?"),
        ("/set temperature", "error: temperature is no setting: write name=value, such as temperature=0.8"),
        ("/set temperature=hot", "error: temperature hot is no value for it: expected a number"),
        ("/set temperature=-1", "error: temperature -1.0 is out of range: it must be at least 0"),
        ("/set top_k=2.5", "error: top_k 2.5 is no value for it: expected a whole number"),
        ("/set num_sequences=4", "error: num_sequences 4 asked for, but greedy gives 1 text: "
         "ask for 1, or choose a strategy that draws, such as --decoding top_p with a temperature above 0"),
        ("/set max_length=9 max_new_tokens=9", "error: max_new_tokens 9 and --max_length 9 contradict each other: "
         "give one of the two"),
        ("/set temperature=off", "error: temperature off is no value for it: expected a number"),
        ("/set decoding=off", "error: decoding off is unknown: choose from greedy, beam, diverse_beam, sample, top_k, "
         "top_p, beam_sample, contrastive"),
        ('/set decoding="', 'error: decoding=" cannot be read: No closing quotation'),
        ("/help", HELP),
    ],
)  # fmt: skip
def test_mistakes_are_said_and_the_session_goes_on(generator: Generator, line: str, message: str) -> None:
    written, said = transcript(generator, settings(), line, "The fox")
    assert said == [message]
    assert written == greedy_text(generator, "The fox") + "\n"


def test_a_prompt_too_long_is_said_and_the_session_goes_on(generator: Generator) -> None:
    written, said = transcript(generator, settings(), "fox " * 60, "The fox")
    assert len(said) == 1
    assert "over the 64 positions" in said[0]
    assert written == greedy_text(generator, "The fox") + "\n"


def test_ctrl_c_stops_a_text_and_keeps_what_there_is(generator: Generator) -> None:
    """The interrupt comes while the third piece is being written."""
    written: list[str] = []

    def write(text: str) -> None:
        if len(written) == 3:
            written.append("")
            raise KeyboardInterrupt
        written.append(text)

    said: list[str] = []
    lines: list[object] = ["The fox", KeyboardInterrupt(), "The owl"]

    def read() -> str:
        line = lines.pop(0) if lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return str(line)

    Session(generator, settings(), "tiny", write, said.append).run(read)
    text = "".join(written)
    assert text.startswith("The fox")
    assert text.endswith("\n" + greedy_text(generator, "The owl") + "\n")
    assert said == ["stopped", ""]


def test_blank_lines_are_passed_over(generator: Generator) -> None:
    assert transcript(generator, settings(), "", "   ") == ("", [])


@pytest.mark.parametrize(
    ("words", "check"),
    [
        ("decoding=beam", lambda o: o.strategy.beams and o.num_sequences == 2),
        ("decoding=greedy", lambda o: o.num_sequences == 1),
        ("max_length=30", lambda o: (o.max_length, o.max_new_tokens) == (30, None)),
        ("max-new-tokens=5", lambda o: (o.max_length, o.max_new_tokens) == (None, 5)),
        ("top_k=off", lambda o: o.top_k is None),
    ],
)
def test_settings_that_pull_others_along(words: str, check: Callable[[DecodingOptions], bool]) -> None:
    before = decoding_options({"decoding": "top_p", "num_sequences": 2, "max_new_tokens": 20, "top_k": 4})
    options, _ = changed(before, words)
    assert check(options)


def test_a_refused_setting_leaves_the_others() -> None:
    before = settings()
    with pytest.raises(UserError):
        changed(before, "max_new_tokens=5 temperature=-1")
    assert before == settings()
