"""/help and /set alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from talk import Talk, greedy_options

from gpt2tg.generation.generator import Generator, load
from gpt2tg.session.settings import FIELDS, flags_as_settings


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


@pytest.mark.parametrize("width", [20, 45, 80, 200])
def test_help_lists_every_command_and_fits(generator: Generator, width: int) -> None:
    talk = Talk(generator, greedy_options())
    talk.session.front = replace(talk.session.front, width=lambda: width)
    lines = talk.type("/help")[1]
    assert max(map(len, lines)) <= max(width, 30)
    for command in ("/continue", "/retry", "/edit", "/why", "/compare", "/model", "/save", "/load", "/quit"):
        assert any(line.lstrip().startswith(command) for line in lines)


@pytest.mark.parametrize("width", [20, 45, 80, 200])
def test_set_alone_lists_all_settings_and_fits(generator: Generator, width: int) -> None:
    talk = Talk(generator, greedy_options())
    talk.session.front = replace(talk.session.front, width=lambda: width)
    lines = talk.type("/set")[1]
    assert max(map(len, lines)) <= max(width, 30)
    assert not any("--" in line for line in lines)
    found: dict[str, str] = {}
    for line in lines:
        if line[2] != " ":
            name, *meaning = line.split(maxsplit=1)
            found[name] = "".join(meaning)
        else:
            found[name] += line
    for name, meaning in found.items():  # lines may break at a hyphen, so spaces do not count
        assert "".join(meaning.split()) == "".join(flags_as_settings(FIELDS[name].metadata["help"]).split())
    assert list(found) == list(FIELDS)


def test_help_on_command_setting_and_strategy(generator: Generator) -> None:
    talk = Talk(generator, greedy_options())
    assert talk.type("/help undo")[1] == ["/undo: undo the last change to the text"]
    assert talk.type("/help /undo")[1] == talk.type("/help undo")[1]
    assert talk.type("/help top_k")[1] == [
        "top_k=off: keep the N most probable tokens\ndefault: 50 with decoding=top_k, 4 with contrastive, else off"
    ]
    assert talk.type("/help top_p")[1][0].startswith("top_p=off: keep the most probable tokens that together")
    assert talk.type("/help contrastive")[1] == [
        "contrastive: the probable token that least resembles what the text already holds"
    ]


def test_help_compare_lists_its_options(generator: Generator) -> None:
    talk = Talk(generator, greedy_options())
    messages = talk.type("/help compare")[1]
    assert {line.split("=")[0].strip() for line in messages if "= " in line} >= {
        "strategies", "reference", "train_file", "report", "output", "overwrite", "prompts_file"
    }  # fmt: skip
    assert not any("--" in line for line in messages)
    assert talk.type("/help train_file")[1][0].startswith("train_file, with /compare: the text that the model learned")
