"""A comparison from the command line to its table and files."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from conftest import FABLES

import text_generation_demo
from gpt2tg.comparison.compare import compare, human_text
from gpt2tg.comparison.strategies import strategies_to_compare
from gpt2tg.comparison.table import COLUMNS, as_json, csv_text, markdown, terminal_table
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import STRATEGIES, DecodingOptions

Capture = pytest.CaptureFixture[str]

SHORT = DecodingOptions(seed=3, max_new_tokens=10, num_sequences=2)


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def words(model_dir: Path, *rest: str) -> list[str]:
    return ["--model_path", str(model_dir), "--compare", "--max_new_tokens", "10", "--seed", "3", *rest]


def test_every_strategy_is_shown_with_its_texts_and_figures(model_dir: Path, capsys: Capture) -> None:
    assert text_generation_demo.main(words(model_dir, "--prompt", "The fox")) == 0
    out, err = capsys.readouterr()
    headings = [line.split(":")[0] for line in out.splitlines() if line.startswith("=== ")]
    assert headings == [f"=== {name}" for name in STRATEGIES]
    assert out.count("The fox") == 1 + 3 + 3 + 3 + 3 + 3 + 3 + 1
    assert "perplexity" in out
    assert err == "seed 3\n"


def test_texts_are_those_that_each_strategy_writes_alone(generator: Generator) -> None:
    strategies = strategies_to_compare(SHORT, "greedy,top_p:temperature=0.9,beam", print)
    found = compare(generator, ["The fox", "The owl"], strategies, batch_size=3)
    for result in found.results:
        for index, prompt in enumerate(found.prompts):
            request = generator.fit(prompt, result.options, index)
            (alone,) = generator.generate_batch([request], result.options)
            assert [s.text for s in result.samples if s.prompt_index == index] == [s.text for s in alone]


def test_prompts_of_a_reference_and_the_human_texts_to_them(generator: Generator) -> None:
    human = human_text(generator, ["\n".join(FABLES)], SHORT, prompts=(), num_prompts=3)
    assert len(human.prompts) == 3
    assert [sample.prompt for sample in human.samples[:3]] == list(human.prompts)
    assert len(human.samples) > 3
    assert human.room == 10
    found = compare(generator, human.prompts, strategies_to_compare(SHORT, "greedy,sample", print), human)
    assert found.human is not None
    assert found.human.figures.tokens_per_second is None
    assert all(result.distance is not None and result.distance > found.human.distance for result in found.results)


def test_a_reference_that_is_too_short_is_refused(generator: Generator) -> None:
    with pytest.raises(UserError, match="holds no piece of 16 tokens and 40 that follow") as caught:
        human_text(generator, ["A fox."], DecodingOptions(max_new_tokens=40), (), 3)
    assert caught.value.option == "reference"


def test_copies_from_the_training_text(generator: Generator) -> None:
    strategies = strategies_to_compare(SHORT, "greedy,top_p", print)
    written = [s.completion for r in compare(generator, ["The fox"], strategies).results for s in r.samples]
    found = compare(generator, ["The fox"], strategies, training=f"x {written[2]} y").results
    assert found[1].texts[1].copied == len(written[2].split())
    assert found[1].figures.copied_most == len(written[2].split())


def test_the_table_fits_into_any_terminal(generator: Generator) -> None:
    found = compare(generator, ["The fox"], strategies_to_compare(SHORT, "top_p:temperature=0.9:min_p=0.1,beam", print))
    for width in (40, 80, 200):
        table = terminal_table(found, width)
        assert max(map(len, table.splitlines())) <= width
        assert all(column.heading in table for column in COLUMNS[:13])
        assert "copied" not in table  # nothing is known of it
        assert "distance" not in table
    assert terminal_table(found, 200).count("\n\n") == 0


def test_csv_and_markdown_and_json_say_the_same(generator: Generator) -> None:
    found = compare(generator, ["The fox"], strategies_to_compare(SHORT, "greedy,top_p", print))
    rows = list(csv.DictReader(csv_text(found).splitlines()))
    entries = as_json(found)["strategies"]
    assert [row["strategy"] for row in rows] == [entry["name"] for entry in entries] == ["greedy", "top_p"]
    assert [float(row["zipf"]) for row in rows] == [entry["figures"]["zipf"] for entry in entries]
    assert entries[1]["settings"]["top_p"] == 0.9
    assert [text["replay"] for text in entries[1]["texts"]] == ["3/0/0", "3/0/1"]
    assert f"| greedy | 1 | {found.results[0].figures.tokens_per_second:.0f} |" in markdown(found)


@pytest.mark.parametrize("ending", ["json", "csv", "md"])
def test_output_files(model_dir: Path, tmp_path: Path, capsys: Capture, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    command = words(model_dir, "--prompt", "The fox", "--strategies", "greedy,sample", "--output", str(path))
    assert text_generation_demo.main(command) == 0
    content = path.read_text(encoding="utf-8")
    assert "greedy" in content
    out, err = capsys.readouterr()
    assert "The fox" not in out  # the texts are in the file, if anywhere
    assert err.splitlines() == ["seed 3", "greedy: 1 text", "sample: 3 texts"]  # that it goes on is said
    if ending == "json":
        assert json.loads(content)["seed"] == 3
    assert text_generation_demo.main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert text_generation_demo.main([*command, "--overwrite"]) == 0


def test_reference_and_training_file_from_the_command_line(
    model_dir: Path, tmp_path: Path, text_file: Path, capsys: Capture
) -> None:
    files = ["--reference", str(text_file), "--examples", "file", "--train_file", str(text_file)]
    path = tmp_path / "out.json"
    command = words(model_dir, *files, "--strategies", "sample", "--num_prompts", "2", "--output", str(path))
    assert text_generation_demo.main(command) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert len(found["prompts"]) == 2
    assert all(prompt.split()[0] in ("The", "A", "Two", "Nobody", "An") for prompt in found["prompts"])
    assert all(text["copied"] >= 1 for text in found["human"]["texts"])
    assert "human text" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--strategies", "magic"], "--strategies magic is unknown"),
        (["--output", "out.txt"], "--output out.txt is of an unknown kind: give a name that ends in .json or .csv"),
        (["--report", "report.pdf"], "--report report.pdf is of an unknown kind: give a name that ends in .html"),
        (["--report", "no/where/report.html"], "give a file in a directory that exists"),
        (["--reference", "nowhere.txt"], "--reference nowhere.txt cannot be read"),
        (["--train_file", "nowhere.txt"], "--train_file nowhere.txt cannot be read"),
        (["--num_prompts", "0"], "--num_prompts 0 is out of range"),
    ],
)
def test_mistakes_end_in_one_line_before_a_model_is_loaded(flags: list[str], message: str, capsys: Capture) -> None:
    assert text_generation_demo.main(["--model_path", "no_model", "--compare", *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_flags_of_a_comparison_are_said_where_there_is_none(
    model_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    flags = ["--reference", "human.txt", "--prompts_file", "prompts.txt", "--output", "out.md", "--budget", "3"]
    assert text_generation_demo.main(["--model_path", str(model_dir), *flags]) == 0
    err = capsys.readouterr().err
    for flag in flags[::2]:
        assert f"{flag} is not used: it does nothing without --compare or --tune" in err
    assert text_generation_demo.main(words(model_dir, "--prompt", "The fox", "--strategies", "greedy", "--apply")) == 0
    assert "--apply is not used: it does nothing without --tune" in capsys.readouterr().err
