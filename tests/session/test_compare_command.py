"""/compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import FABLES
from talk import Talk, greedy_options, greedy_text, sampling_options, transcript

from gpt2tg.generation.generator import Generator, load
from gpt2tg.session.style import Style


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def test_compare_uses_the_last_prompt_or_another(generator: Generator) -> None:
    talk = Talk(generator, sampling_options(seed=3))
    talk.type("The fox", "/continue and")
    before = talk.text
    prompt = str(talk.session.text.turns[0]) + " and"
    written, _ = talk.type("/compare")
    assert written.count(prompt) > 3
    assert talk.type("/compare The owl")[0].count("The owl") == written.count(prompt)
    assert talk.text == before


def test_compare_with_chosen_strategies(generator: Generator) -> None:
    talk = Talk(generator, sampling_options(seed=3, num_sequences=4))
    written, messages = talk.type("/compare strategies=greedy,sample:temperature=0.5 The owl")
    headings = [line.split(":")[0] for line in written.splitlines() if line.startswith("===")]
    assert headings == ["=== greedy", "=== sample temperature=0.5"]
    assert written.count("The owl") == 1 + 4
    assert messages == ["seed 3"]
    assert talk.type("/compare strategies=gredy The owl")[1] == [
        "error: strategies gredy is unknown: did you mean greedy?"
    ]


def test_compare_has_the_options_of_the_flag(generator: Generator, tmp_path: Path) -> None:
    """Reference, training text, number of texts, shared settings, and both output files."""
    text, table, page = tmp_path / "my fables.txt", tmp_path / "x.json", tmp_path / "report.html"
    text.write_text("\n".join(FABLES * 4), encoding="utf-8")
    talk = Talk(generator, sampling_options(seed=3))
    written, messages = talk.type(
        f'/compare strategies=greedy,sample num-sequences=2 max_new_tokens=6 reference="{text}" examples=file '
        f'num_prompts=3 train_file="{text}" output={table} report={page}'
    )
    found = json.loads(table.read_text(encoding="utf-8"))
    assert len(found["prompts"]) == 3
    assert all(prompt in "\n".join(FABLES * 4) for prompt in found["prompts"])
    assert [entry["name"] for entry in found["strategies"]] == ["greedy", "sample"]
    assert [len(entry["texts"]) for entry in found["strategies"]] == [3, 6]
    assert all(text["completion_tokens"] <= 6 for entry in found["strategies"] for text in entry["texts"])
    assert all("copied" in text for entry in found["strategies"] for text in entry["texts"])
    assert found["human"]["distance"] is not None
    assert "human text" in written
    assert "copied most" in written
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert messages == [
        "seed 3",
        "greedy: 3 texts",
        "sample: 6 texts",
        f"comparison written to {table}",
        f"comparison written to {page}",
    ]
    again = f"/compare strategies=greedy output={table} The owl"
    assert talk.type(again)[1] == [
        f"error: output {table} exists already: choose another, or replace it with overwrite=on"
    ]
    assert talk.type(again.replace("The owl", "overwrite=on The owl"))[1][-1] == f"comparison written to {table}"
    assert json.loads(table.read_text(encoding="utf-8"))["prompts"] == ["The owl"]
    assert talk.session.options == sampling_options(seed=3)
    assert talk.text == ""


def test_compare_with_prompts_file(generator: Generator, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("The fox\nThe owl\n", encoding="utf-8")
    written, _ = Talk(generator, sampling_options(seed=3)).type(f"/compare strategies=greedy prompts_file={file}")
    assert [line[:7] for line in written.splitlines() if line.startswith("The ")] == ["The fox", "The owl"]
    written, messages = Talk(generator, sampling_options(seed=3)).type(
        f"/compare strategies=greedy prompts_file={file} The cat"
    )
    assert messages[0] == "prompt is not used: the prompts come from prompts_file"
    assert "The cat" not in written


def test_off_resets_a_file_option(generator: Generator) -> None:
    talk = Talk(generator, sampling_options(seed=3))
    assert "The fox" in talk.type("/compare strategies=greedy reference=off The fox")[0]


def test_prompt_to_compare_may_look_like_a_setting(generator: Generator) -> None:
    talk = Talk(generator, sampling_options(seed=3))
    assert talk.type('/compare strategies=greedy prompt="x=1 and"')[0].count("x=1 and") == 1
    assert talk.type("/compare strategies=greedy y is x=1")[0].count("y is x=1") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("refrence=a.txt", "/compare has no option refrence: did you mean reference?"),
        ("num_sequence=3", "/compare has no option num_sequence: did you mean num_sequences?"),
        ("decoding=beam", "/compare has no option decoding: choose what to compare with strategies=greedy,top_p"),
        (
            "zzz=3 x",
            "/compare has no option zzz: /help compare lists the options; "
            'write a prompt that begins like one as prompt="zzz=..."',
        ),
        ("strategies=beem", "strategies beem is unknown: did you mean beam?"),
        ("num_sequences=0 The", "num_sequences 0 is out of range: it must be at least 1"),
        ("num_prompts=few", "num_prompts few is not valid: give a whole number"),
        ("examples=lines The", "examples lines is unknown: did you mean line?"),
        ("reference=nowhere.txt", "reference nowhere.txt cannot be read: No such file or directory"),
        ("prompts_file=nowhere.txt", "prompts_file nowhere.txt cannot be read: No such file or directory"),
        ("output=x.txt The", "output x.txt has an unknown format: give a file name that ends in .json or .csv or .md"),
        ("report=no/where.html The", "report no/where.html cannot be written: give a file in a directory that exists"),
        ('reference="a.txt', 'reference="a.txt cannot be read: No closing quotation'),
        ("overwrite=maybe", "overwrite maybe is not valid: give on or off"),
    ],
)
def test_compare_reports_errors_in_one_line(generator: Generator, words: str, message: str) -> None:
    """And the session continues."""
    written, messages = transcript(generator, greedy_options(), f"/compare {words}", "The fox")
    assert messages == [f"error: {message}"]
    assert written == greedy_text(generator, "The fox") + "\n"


def test_compared_text_has_no_control_characters(generator: Generator) -> None:
    talk = Talk(generator, sampling_options(seed=3), style=Style(hides_controls=True))
    assert "\x1b" not in talk.type("/compare strategies=greedy \x1b[2J")[0]
