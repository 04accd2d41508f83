"""Sessions saved and loaded, and another model loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from talk import Talk, greedy_options, greedy_text, sampling_options

from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import BUNDLED_MODEL
from gpt2tg.session.style import Style
from gpt2tg.session.turns import Turn


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def test_session_is_saved_through_device_and_link(generator: Generator, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("story.jsonl")
    talk = Talk(generator, greedy_options())
    talk.type("The fox", f"/save {os.devnull}", f"/save {link}")
    assert link.is_symlink()
    assert "The fox" in (tmp_path / "story.jsonl").read_text(encoding="utf-8")


def test_another_model_continues_the_text(generator: Generator, model_dir: Path) -> None:
    talk = Talk(generator, greedy_options())
    talk.type("The fox")
    before = talk.text
    assert talk.type(f"/model {model_dir}")[1][0].startswith(f"{model_dir} on cpu, fp32, decoding=greedy")
    assert talk.session.generator is not generator
    assert talk.type("/continue")[0] == greedy_text(generator, before).removeprefix(before) + "\n"


def test_loaded_session_equals_the_saved_one(generator: Generator, tmp_path: Path) -> None:
    file = tmp_path / "my story.jsonl"
    talk = Talk(generator, sampling_options(stop=("zz",), seed=11))
    talk.type("The fox", "/retry", "/continue and 猫", "/set temperature=0.8")
    assert talk.type(f"/save {file}")[1] == [f"saved 2 turns to {file}"]
    other = Talk(generator, greedy_options())
    assert other.type(f'/load "{file}"')[0] == talk.text + "\n"
    assert other.session.options == talk.session.options
    assert other.session.text.turns == talk.session.text.turns
    # The last turn was generated at another temperature than the current one.
    assert other.type("/set temperature=1", "/again")[0].removesuffix("\n") == talk.text.removeprefix(
        str(talk.session.text.turns[0])
    )
    assert other.text == talk.text
    for turn, before in zip(talk.session.text.turns, ("", str(talk.session.text.turns[0])), strict=True):
        assert turn.options is not None
        assert generator.generate(before + turn.typed, turn.options)[0].completion == turn.written
    assert other.type("/undo", "/undo", "/text")[1][-1] == "error: there is no text yet: type its beginning"


def test_session_of_other_weights_says_so(generator: Generator, model_dir: Path, tmp_path: Path) -> None:
    """The name is the same, the weights are not: the seeds of the file no longer write its text."""
    changed = tmp_path / "model"
    shutil.copytree(model_dir, changed)
    weights = load_file(changed / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, changed / "model.safetensors")
    file = tmp_path / "story.jsonl"
    Talk(load(str(changed)), greedy_options()).type("The fox", f"/save {file}")
    note = "It was saved with other weights of tiny: the same seeds write other texts now."
    assert note in Talk(generator, greedy_options()).type(f"/load {file}")[1]
    assert note not in Talk(load(str(changed)), greedy_options()).type(f"/load {file}")[1]


def test_session_of_an_earlier_version_loads_without_a_note(generator: Generator, tmp_path: Path) -> None:
    """Those versions wrote no fingerprint."""
    file = tmp_path / "story.jsonl"
    Talk(generator, greedy_options()).type("The fox", f"/save {file}")
    first, *rest = file.read_text(encoding="utf-8").splitlines()
    entry = json.loads(first)
    del entry["weights"]
    file.write_text("\n".join([json.dumps(entry), *rest]), encoding="utf-8")
    printed = Talk(generator, greedy_options()).type(f"/load {file}")[1]
    assert not [line for line in printed if "other weights" in line or line.startswith("error")]


def test_session_of_the_earlier_bundled_model_says_so(generator: Generator, tmp_path: Path) -> None:
    """The first versions, which wrote no fingerprint, had another gpt2-tiny."""
    file = tmp_path / "story.jsonl"
    talk = Talk(generator, greedy_options())
    talk.session.name = BUNDLED_MODEL
    talk.type("The fox", f"/save {file}")
    note = "It was saved with other weights of gpt2-tiny: the same seeds write other texts now."
    assert note not in talk.type(f"/load {file}")[1]
    first, *rest = file.read_text(encoding="utf-8").splitlines()
    entry = json.loads(first)
    del entry["weights"]
    file.write_text("\n".join([json.dumps(entry), *rest]), encoding="utf-8")
    assert note in talk.type(f"/load {file}")[1]


def test_files_of_others_are_not_overwritten(generator: Generator, tmp_path: Path) -> None:
    file = tmp_path / "story.jsonl"
    file.write_text("mine")
    talk = Talk(generator, greedy_options())
    assert (
        "already exists: choose another name, or replace it with /save" in talk.type("The fox", f"/save {file}")[1][0]
    )
    assert file.read_text() == "mine"
    assert talk.type(f"/save {file} overwrite", "/continue", f"/save {file}")[1] == [
        f"saved 1 turn to {file}", f"saved 2 turns to {file}",
    ]  # fmt: skip
    assert "cannot be written" in talk.type(f"/save {tmp_path}")[1][0]
    assert [path.name for path in tmp_path.iterdir()] == ["story.jsonl"]


def test_loaded_text_has_no_control_characters(generator: Generator, tmp_path: Path) -> None:
    """The model may generate them, and a downloaded file may have them. A pipe gets the text unchanged."""
    text = "The \x1b]0;mine\x07fox\x9b2J\tand\n"
    file = tmp_path / "story.jsonl"
    talk = Talk(generator, greedy_options())
    talk.session.text.change((Turn(text, text),))
    talk.type(f"/save {file}")
    screen = Talk(generator, greedy_options(), style=Style(hides_controls=True))
    for line in ("/text", "/why all", "/candidates", "/continue", "/retry", "/undo", "/set num_sequences=1"):
        written, messages = screen.type(f"/load {file}", line)
        assert not set(map(chr, (*range(9), *range(11, 32), *range(127, 160)))) & set(written + "".join(messages))
    assert screen.type(f"/load {file}")[0] == "The \ufffd]0;mine\ufffdfox\ufffd2J\tand\n" * 2 + "\n"
    assert talk.type(f"/load {file}")[0] == text * 2 + "\n"


def saved(generator: Generator, tmp_path: Path) -> tuple[Path, list[str]]:
    file = tmp_path / "story.jsonl"
    Talk(generator, sampling_options(seed=1)).type("The fox", "/continue", f"/save {file}")
    return file, file.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: lines[:2], "is truncated: it has 1 of 2 turns"),
        (lambda lines: [*lines[:2], lines[2][:40]], "line 3 is not valid JSON"),
        (lambda lines: [], "is not a saved session"),
        (lambda lines: lines[1:], "is not a saved session"),
        (lambda lines: ["[]"], "line 1 is not a JSON object"),
        (lambda lines: [lines[0].replace('session": 1', 'session": 3'), *lines[1:]],
         "has session format 3, and this version"),
        (lambda lines: [lines[0], lines[1].replace('"typed": "', '"typed": 3, "x": "'), lines[2]],
         'line 2: "typed" must be a string'),
        (lambda lines: [lines[0], lines[1].replace('"temperature": 1.0', '"temperature": -1.0'), lines[2]],
         "line 2: temperature -1.0 is out of range"),
        (lambda lines: [lines[0].replace('"temperature": 1.0', '"temperature": "hot"'), *lines[1:]],
         'line 1: temperature is "hot", expected a number'),
        (lambda lines: [lines[0].replace('"brought": []', '"brought": ["heat"]'), *lines[1:]],
         'line 1: "brought" must be a list of names of settings'),
        (lambda lines: [lines[0].replace('"brought": []', '"brought": 3'), *lines[1:]],
         'line 1: "brought" must be a list of names of settings'),
        (lambda lines: [lines[0], lines[1].replace('"choice": 0', '"choice": -1'), lines[2]],
         'line 2: "choice" must be a whole number from 0'),
        (lambda lines: [lines[0], lines[1].replace('"finish_reason": "', '"finish_reason": 3, "x": "'), lines[2]],
         'line 2: "finish_reason" must be a string or null'),
        (lambda lines: [lines[0], lines[1].replace('"ids": [', '"ids": [-1, '), lines[2]],
         'line 2: "ids" must be a list of token ids'),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_and_change_nothing(
    generator: Generator, tmp_path: Path, spoil: Callable[[list[str]], list[str]], message: str
) -> None:
    file, lines = saved(generator, tmp_path)
    file.write_text("".join(f"{line}\n" for line in spoil(lines)), encoding="utf-8")
    talk = Talk(generator, greedy_options())
    talk.type("The owl")
    before, options = talk.text, talk.session.options
    (messages,) = talk.type(f"/load {file}")[1]
    assert message in messages
    assert (talk.text, talk.session.options) == (before, options)


def test_session_of_another_model_gives_a_notice(generator: Generator, tmp_path: Path) -> None:
    file, lines = saved(generator, tmp_path)
    file.write_text("\n".join([lines[0].replace('"model": "tiny"', '"model": "huge"'), *lines[1:]]) + "\n")
    messages = Talk(generator, greedy_options()).type(f"/load {file}")[1]
    assert messages[1] == "It was saved with the model huge; this one is tiny. /model changes it."


def test_file_of_an_earlier_version_is_read(generator: Generator, tmp_path: Path) -> None:
    file, lines = saved(generator, tmp_path)
    file.write_text("\n".join([lines[0].replace(', "brought": []', ""), *lines[1:]]) + "\n")
    assert "brought" not in file.read_text()
    assert Talk(generator, greedy_options()).type(f"/load {file}")[1][0].startswith("loaded 2 turns")
