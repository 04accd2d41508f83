"""Settings changed, merged and shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from talk import Talk, greedy_options, sampling_options, transcript

from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import DecodingOptions, decoding_options
from gpt2tg.session.settings import parse_settings, with_settings


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def test_settings_are_changed_shown_and_used(generator: Generator) -> None:
    written, messages = transcript(
        generator, greedy_options(), "/set decoding=top_p top-p=0.5 seed=3", "The fox", "/set seed=none", "/show"
    )
    wanted = greedy_options(decoding="top_p", top_p=0.5, seed=3)
    assert written == generator.generate("The fox", wanted)[0].text + "\n"
    assert messages[:3] == [
        "decoding=top_p temperature=0.7 top_p=0.5 seed=3 max_new_tokens=8",
        "(seed 3)",
        "decoding=top_p temperature=0.7 top_p=0.5 max_new_tokens=8, a new seed for each text",
    ]
    assert messages[3] == f"tiny on cpu, fp32, {messages[2]}"
    assert messages[4].endswith("tokens; context length 64")


def test_short_ways_to_greedy_options(generator: Generator) -> None:
    talk = Talk(generator, greedy_options())
    assert talk.type("/decoding beam")[1] == ["decoding=beam num_beams=5 max_new_tokens=8"]
    assert talk.type("/decoding beem")[1] == ["error: decoding beem is unknown: did you mean beam?"]
    assert any(line.startswith("  * beam ") for line in talk.type("/decoding")[1])
    assert talk.type("/seed 9")[1] == ["decoding=beam num_beams=5 max_new_tokens=8"]
    assert talk.session.options.seed == 9
    assert talk.type("/decoding sample")[1] == ["decoding=sample temperature=0.7 seed=9 max_new_tokens=8"]
    assert talk.type("/seed")[1] == ["decoding=sample temperature=0.7 max_new_tokens=8, a new seed for each text"]
    assert talk.type("/seed x")[1] == ["error: seed x is not valid: give a whole number"]


@pytest.mark.parametrize(
    ("line", "strings"),
    [
        ("/stop THE END", ("THE END",)),
        ("/stop don't", ("don't",)),
        ('/stop "THE END" "."', ("THE END", ".")),
        ("/stop \\n", ("\n",)),
        ("/stop off", ()),
        ("/stop", ()),
        ("/set stop=a stop='b c'", ("a", "b c")),
    ],
)
def test_stop_strings(generator: Generator, line: str, strings: tuple[str, ...]) -> None:
    talk = Talk(generator, greedy_options(stop=("x",)))
    talk.type(line)
    assert talk.session.options.stop == strings


def test_shown_settings_can_be_typed_again(generator: Generator) -> None:
    talk = Talk(
        generator, sampling_options(stop=("THE END", "\n", 'say "no"'), bias=("dragon=+2",), suppress_eos=True, seed=4)
    )
    (line,) = talk.type("/set decoding=top_k top_k=9")[1]
    fresh = Talk(generator, greedy_options(max_new_tokens=99))
    fresh.type(f"/set {line}")
    assert fresh.session.options == talk.session.options


def test_unused_setting_gives_a_notice(generator: Generator) -> None:
    assert transcript(generator, greedy_options(), "/set top_p=0.5")[1] == [
        "top_p is not used: decoding=greedy does not use it", "decoding=greedy max_new_tokens=8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "check"),
    [
        ("decoding=beam", lambda o: o.strategy.beams and o.num_sequences == 2),
        ("decoding=greedy", lambda o: o.num_sequences == 1),
        ("max_length=30", lambda o: (o.max_length, o.max_new_tokens) == (30, None)),
        ("max-new-tokens=5", lambda o: (o.max_length, o.max_new_tokens) == (None, 5)),
        ("--max_new_tokens=5", lambda o: (o.max_length, o.max_new_tokens) == (None, 5)),
        ("top_k=off", lambda o: o.top_k is None),
        ("replay=7/0/1 num_sequences=1", lambda o: (o.replay, o.seed) == ("7/0/1", None)),
    ],
)
def test_setting_resets_those_it_contradicts(words: str, check: Callable[[DecodingOptions], bool]) -> None:
    before = decoding_options({"decoding": "top_p", "num_sequences": 2, "max_new_tokens": 20, "top_k": 4, "seed": 3})
    options = with_settings(before, parse_settings(words))
    assert check(options)


def test_seed_and_replay_replace_each_other(generator: Generator) -> None:
    talk = Talk(generator, sampling_options(replay="7/0/2"))
    talk.type("/set seed=3")
    assert (talk.session.options.seed, talk.session.options.replay) == (3, None)
    talk.type("/set replay=7/0/1")
    assert (talk.session.options.seed, talk.session.options.replay) == (None, "7/0/1")
    talk.type("/seed 4")
    assert (talk.session.options.seed, talk.session.options.replay) == (4, None)


def test_refused_setting_changes_nothing() -> None:
    before = greedy_options()
    with pytest.raises(UserError):
        with_settings(before, parse_settings("max_new_tokens=5 temperature=-1"))
    assert before == greedy_options()
