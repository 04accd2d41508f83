"""Many prompts: in batches, from files, to files, and resumed after an interruption."""

from __future__ import annotations

import io
import json
import random
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import generate_from_finetuned
from gpt2tg.generation.filter_chain import filter_chain
from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import decoding_options

PROMPTS = ["The owl", "A fox counted the stars twice and found one", "", "Two", "é猫", "Nobody told the river it was"]

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def run(model_dir: Path, *words: object) -> int:
    return generate_from_finetuned.main(["--model_path", str(model_dir), "--max_new_tokens", "12", *map(str, words)])


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prompts_file(directory: Path, *lines: str, name: str = "prompts.txt") -> Path:
    path = directory / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


STRATEGIES = ["greedy", "beam", "diverse_beam", "sample", "top_k", "top_p", "beam_sample", "contrastive"]


@pytest.mark.parametrize("decoding", STRATEGIES)
def test_text_does_not_depend_on_its_batch(generator: Generator, decoding: str) -> None:
    """Alone, in batches of 2 and 6, and in another order, with prompts of unequal lengths."""
    options = decoding_options({"decoding": decoding, "max_new_tokens": 12, "seed": 3, "no_repeat_ngram": 3})

    def texts(order: list[int], size: int) -> dict[int, list[tuple[int, ...]]]:
        found = {}
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            requests = [generator.fit(PROMPTS[index], options, index) for index in batch]
            for index, samples in zip(batch, generator.generate_batch(requests, options), strict=True):
                found[index] = [sample.ids for sample in samples]
        return found

    alone = texts(list(range(6)), 1)
    assert texts(list(range(6)), 6) == alone
    assert texts([4, 0, 5, 2, 1, 3], 2) == alone
    assert texts([5, 4, 3, 2, 1, 0], 6) == alone


@pytest.mark.parametrize("decoding", ["sample", "top_k", "top_p"])
def test_text_does_not_depend_on_the_number_of_texts(generator: Generator, decoding: str) -> None:
    def ids(count: int) -> list[tuple[int, ...]]:
        options = decoding_options({"decoding": decoding, "max_new_tokens": 12, "seed": 3, "num_sequences": count})
        return [sample.ids for sample in generator.generate("The owl", options)]

    assert ids(7)[:3] == ids(3)


@pytest.mark.parametrize("decoding", ["top_p", "beam_sample"])
def test_replay_generates_one_sample_again(model_dir: Path, tmp_path: Path, decoding: str, capsys: Capture) -> None:
    out = tmp_path / "out.jsonl"
    source = prompts_file(tmp_path, "The owl", "A fox")
    options = ["--decoding", decoding, "--temperature", "1"]
    assert run(model_dir, "--prompts_file", source, "--output", out, "--format", "jsonl", *options) == 0
    capsys.readouterr()
    for entry in records(out):
        assert run(model_dir, "--prompt", entry["prompt"], "--replay", entry["replay"], *options) == 0
        assert capsys.readouterr().out == entry["prompt"] + entry["completion"] + "\n"


def test_best_of_returns_the_most_probable_per_token(generator: Generator) -> None:
    settings = {"decoding": "sample", "temperature": 1.5, "max_new_tokens": 8, "seed": 1}
    drawn = generator.generate("The owl", decoding_options({**settings, "num_sequences": 12}))
    best = generator.generate("The owl", decoding_options({**settings, "num_sequences": 3, "best_of": 12}))
    by_mean = sorted(drawn, key=lambda sample: -sample.logprob / len(sample.ids))
    assert best == by_mean[:3]


def test_best_of_returns_different_texts(generator: Generator) -> None:
    settings = {"decoding": "top_k", "top_k": 2, "max_new_tokens": 1, "seed": 1, "num_sequences": 5, "best_of": 20}
    texts = [sample.ids for sample in generator.generate("The owl", decoding_options(settings))]
    assert len(texts) == len(set(texts)) == 2


def test_record_has_all_fields(model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run(model_dir, "--prompt", "The owl", "--output", out, "--format", "jsonl", "--seed", "5") == 0
    generator = load(str(model_dir))
    expected = generator.generate("The owl", decoding_options({"max_new_tokens": 12, "seed": 5}))
    for number, (entry, sample) in enumerate(zip(records(out), expected, strict=True)):
        settings = entry.pop("settings")
        assert settings["decoding"] == "top_p"
        assert settings["temperature"] == 0.7
        assert entry == {
            "prompt": "The owl",
            "completion": sample.completion,
            "prompt_index": 0,
            "sample": number,
            "texts": 3,
            "prompt_tokens": len(generator.encode("The owl")),
            "completion_tokens": len(sample.ids),
            "finish_reason": sample.finish_reason,
            "seed": 5,
            "replay": f"5/0/{number}",
            "logprob": pytest.approx(sample.logprob, abs=1e-4),
        }


def test_records_of_beams_have_both_scores(model_dir: Path, capsys: Capture) -> None:
    assert run(model_dir, "--decoding", "beam", "--format", "jsonl", "--prompt", "The owl") == 0
    for line in capsys.readouterr().out.splitlines():
        entry = json.loads(line)
        assert entry["ranking_score"] == pytest.approx(entry["logprob"] / entry["completion_tokens"], abs=1e-4)
        assert entry["seed"] is entry["replay"] is None


def test_prompts_file_has_one_prompt_per_line(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    source = prompts_file(tmp_path, "The owl", "", "  A fox", "é猫")
    assert run(model_dir, "--prompts_file", source, "--decoding", "greedy") == 0
    out = capsys.readouterr().out
    starts = [out.index(prompt) for prompt in ("The owl", "\n\n  A fox", "\n\né猫")]
    assert starts == sorted(starts)


def test_prompt_lines_can_have_their_own_settings(model_dir: Path, tmp_path: Path) -> None:
    lines = [
        {"prompt": "The owl"},
        {"prompt": "The owl", "max_new_tokens": 3},
        {"prompt": "The owl", "decoding": "beam", "num_beams": 2, "num_sequences": 2},
        {"prompt": "The owl", "max_length": 20, "stop": "e"},
        {"prompt": "", "min_new_tokens": 2, "temperature": 1},
    ]
    source = prompts_file(tmp_path, *map(json.dumps, lines), name="prompts.jsonl")
    out = tmp_path / "out.jsonl"
    words = ["--decoding", "greedy", "--output", out, "--format", "jsonl"]
    assert run(model_dir, "--prompts_file", source, *words) == 0
    found = records(out)
    assert [entry["prompt_index"] for entry in found] == [0, 1, 2, 2, 3, 4]
    assert [entry["settings"]["decoding"] for entry in found] == ["greedy"] * 2 + ["beam"] * 2 + ["greedy"] * 2
    assert found[1]["completion_tokens"] <= 3
    assert "e" not in found[4]["completion"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 2 is not valid JSON"),
        ('{"text": "x"}', 'line 2 has no string "prompt"'),
        ('{"prompt": 3}', 'line 2 has no string "prompt"'),
        ('["x"]', "line 2 is not a JSON object"),
        ('{"prompt": "x", "temprature": 1}', "line 2: temprature is not a decoding setting"),
        ('{"prompt": "x", "top_k": 1.5}', "line 2: top_k is 1.5, expected a whole number"),
        ('{"prompt": "x", "top_k": true}', "line 2: top_k is true, expected a whole number"),
        ('{"prompt": "x", "temperature": "hot"}', 'line 2: temperature is "hot", expected a number'),
        ('{"prompt": "x", "stop": [1]}', "line 2: stop is [1], expected texts"),
        ('{"prompt": "x", "temperature": -1}', "prompt 2: temperature -1.0 is out of range"),
        ('{"prompt": "x", "max_new_tokens": 99}', "prompt 2: max_new_tokens 99: a prompt of 1 tokens"),
    ],
)
def test_invalid_prompt_line_is_reported_before_generating(
    model_dir: Path, tmp_path: Path, line: str, message: str, capsys: Capture
) -> None:
    source = prompts_file(tmp_path, '{"prompt": "The owl"}', line, name="prompts.jsonl")
    out = tmp_path / "out.jsonl"
    assert run(model_dir, "--prompts_file", source, "--output", out, "--format", "jsonl") == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe"])
def test_unusable_prompts_file_is_refused(
    model_dir: Path, tmp_path: Path, content: bytes | None, capsys: Capture
) -> None:
    source = tmp_path / "prompts.txt"
    if content is not None:
        source.write_bytes(content)
    assert run(model_dir, "--prompts_file", source) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_prompt_can_come_from_stdin(model_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("The owl\nA fox\n"))
    assert run(model_dir, "--prompt", "-", "--decoding", "greedy") == 0
    assert capsys.readouterr().out.startswith("The owl\nA fox")


@pytest.mark.parametrize("prompt", ["caf\udce9", "\ud83d"])
def test_prompt_that_is_not_utf8_is_refused(model_dir: Path, prompt: str, capsys: Capture) -> None:
    assert run(model_dir, "--prompt", prompt) == 2
    assert "--prompt is not UTF-8" in capsys.readouterr().err


# --- output files -----------------------------------------------------------------------------------------------


def test_text_file_is_not_overwritten_by_default(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "story.txt"
    out.write_text("mine")
    assert run(model_dir, "--output", out, "--decoding", "greedy") == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run(model_dir, "--output", out, "--decoding", "greedy", "--overwrite") == 0
    assert out.read_text().startswith("Once upon a time")
    assert [path.name for path in tmp_path.iterdir()] == ["story.txt"]


@pytest.mark.parametrize("where", [".", "no/such/directory.txt"])
def test_impossible_output_is_refused_first(model_dir: Path, tmp_path: Path, where: str) -> None:
    assert run(model_dir, "--output", tmp_path / where) == 2


@pytest.mark.parametrize("cut", range(0, 100, 9))
def test_killed_run_is_resumed_by_the_same_command(
    model_dir: Path, tmp_path: Path, cut: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is truncated at some byte and no seed is given. Complete prompts are not generated again."""
    source = prompts_file(tmp_path, *[prompt for prompt in PROMPTS if prompt])
    out = tmp_path / "out.jsonl"
    words = [
        "--prompts_file",
        source,
        "--output",
        out,
        "--format",
        "jsonl",
        "--num_sequences",
        "2",
        "--batch_size",
        "2",
    ]
    assert run(model_dir, *words) == 0
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) * cut // 100])
    finished = sum(1 for n in range(1, 6) if len(b"".join(whole.splitlines(True)[: 2 * n])) <= len(out.read_bytes()))
    written: list[str] = []
    genuine = Generator._stream

    def spy(self: Generator, batch: Any, rows: Any = None) -> Any:
        written.extend(request.prompt for request in batch.requests)
        return genuine(self, batch, rows)

    monkeypatch.setattr(Generator, "_stream", spy)
    if not finished:
        words += ["--seed", records_seed(whole)]
    assert run(model_dir, *words) == 0
    assert out.read_bytes() == whole
    assert len(written) == 5 - finished


def records_seed(content: bytes) -> str:
    return str(json.loads(content.splitlines()[0])["seed"])


def test_finished_run_does_nothing(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["--output", tmp_path / "out.jsonl", "--format", "jsonl"]
    assert run(model_dir, *words) == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    capsys.readouterr()
    assert run(model_dir, *words) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert capsys.readouterr().err == "1 of 1 prompts are done, 0 to go\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--prompt", "The fox"], "line 1 has another prompt"),
        (["--temperature", "0.9"], "line 1 has temperature 0.7, not 0.9"),
        (["--seed", "8"], "line 1 has seed 7, not 8"),
        (["--num_sequences", "2"], "line 1 has num_sequences None, not 2"),
    ],
)
def test_records_of_another_command_are_refused_unchanged(
    model_dir: Path, tmp_path: Path, change: list[str], message: str, capsys: Capture
) -> None:
    out = tmp_path / "out.jsonl"
    assert run(model_dir, "--output", out, "--format", "jsonl", "--seed", "7") == 0
    content = out.read_bytes() + b'{"cut'
    out.write_bytes(content)
    words = ["--output", out, "--format", "jsonl", *([] if "--seed" in change else ["--seed", "7"]), *change]
    assert run(model_dir, *words) == 2
    assert message in capsys.readouterr().err
    assert out.read_bytes() == content
    assert run(model_dir, *words, "--overwrite") == 0


@pytest.mark.parametrize(
    "content",
    [
        '{"mine": 1}\n{"mine": 2}\n', '{"mine": 1}\n', "a diary", "a diary\n", '{"prompts', "[" * 100_000 + "\n",
        '{"prompt": "The owl"}', '{"prompt": "The owl", "completion": "slept", "note": "last line without a break"}',
    ],
)  # fmt: skip
def test_file_without_records_is_refused_unchanged(
    model_dir: Path, tmp_path: Path, content: str, capsys: Capture
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(content)
    assert run(model_dir, "--output", out, "--format", "jsonl") == 2
    assert "line 1 is not a record of this program" in capsys.readouterr().err
    assert out.read_text() == content


def test_foreign_line_after_records_is_left_alone(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.jsonl"
    words = ["--output", out, "--format", "jsonl", "--seed", "7"]
    assert run(model_dir, *words) == 0
    records = out.read_text()
    out.write_text(records + '{"prompt": "my own example"}')
    assert run(model_dir, *words) == 2
    assert "line 4 is not a record of this program" in capsys.readouterr().err
    assert out.read_text() == records + '{"prompt": "my own example"}'
    out.write_text(records.removesuffix("\n"))  # a record without its line break is still a record
    assert run(model_dir, *words) == 0
    assert out.read_text() == records


def test_overwritten_file_is_kept_until_the_first_record(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("a diary")
    monkeypatch.setattr(Generator, "_stream", lambda *_: (_ for _ in ()).throw(OSError("broken")))
    assert run(model_dir, "--output", out, "--format", "jsonl", "--overwrite") == 1
    assert out.read_text() == "a diary"


def test_resumed_run_handles_lines_with_their_own_seeds(model_dir: Path, tmp_path: Path) -> None:
    """A greedy run without a seed, with one line that draws and one that has a seed."""
    lines = ['{"prompt": "The owl", "decoding": "top_p", "seed": 9}', '{"prompt": "A fox", "decoding": "top_p"}']
    source = prompts_file(tmp_path, *lines, '{"prompt": "Two"}', name="prompts.jsonl")
    out = tmp_path / "out.jsonl"
    words = ["--prompts_file", source, "--decoding", "greedy", "--output", out, "--format", "jsonl"]
    assert run(model_dir, *words) == 0
    whole = out.read_bytes()
    out.write_bytes(whole[:-3])
    assert run(model_dir, *words) == 0
    assert out.read_bytes() == whole


def test_prompt_line_can_be_a_replay(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(model_dir, "--prompt", "The owl", "--seed", "7", "--format", "jsonl") == 0
    third = json.loads(capsys.readouterr().out.splitlines()[2])
    source = prompts_file(tmp_path, '{"prompt": "The owl", "replay": "7/0/2"}', name="prompts.jsonl")
    assert run(model_dir, "--prompts_file", source, "--format", "jsonl") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["completion"] == third["completion"]


def test_replay_of_a_missing_prompt_is_refused(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    source = prompts_file(tmp_path, "The owl", "A fox")
    assert run(model_dir, "--prompts_file", source, "--replay", "7/5/0") == 2
    assert "--replay names prompt 5, but there are 2" in capsys.readouterr().err


# --- ends and limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", STRATEGIES)
def test_stop_string_ends_the_text_and_the_computation(generator: Generator, decoding: str) -> None:
    """The stop strings are taken from the texts that the model generates without them."""
    base = {"decoding": decoding, "max_new_tokens": 25, "seed": 2, "num_sequences": 1}
    plain = generator.generate("The owl", decoding_options(base))[0]
    chance = random.Random(1)
    for _ in range(4):
        start = chance.randrange(2, max(3, len(plain.completion) - 4))
        stop = plain.completion[start : start + 3]
        if len(stop) < 3 or "\ufffd" in stop:
            continue
        sample = generator.generate("The owl", decoding_options({**base, "stop": (stop,)}))[0]
        kept = generator.generate("The owl", decoding_options({**base, "stop": (stop,), "keep_stop": True}))[0]
        assert stop not in sample.completion
        if sample.finish_reason == "stop":
            assert kept.completion == sample.completion + stop
        if decoding in ("greedy", "sample", "top_k", "top_p"):
            assert sample.completion == plain.completion[: plain.completion.index(stop)]
            assert sample.finish_reason == "stop"
            assert len(sample.ids) <= len(plain.ids)


def test_bias_forces_a_word_and_ban_overrides_it(generator: Generator) -> None:
    """The bias exceeds every logit, and a ban overrides it."""
    base = {"decoding": "greedy", "max_new_tokens": 6, "bias": ("q=+1000",)}
    forced = generator.generate("The", decoding_options(base))[0]
    assert set(forced.completion.replace(" ", "").lower()) == {"q"}
    banned = generator.generate("The", decoding_options({**base, "ban_words": ("Q",)}))[0]
    assert "q" not in banned.completion.lower()


@pytest.mark.parametrize("decoding", ["greedy", "beam", "top_p"])
def test_minimum_length_delays_the_end(generator: Generator, decoding: str) -> None:
    """The end token has the highest logit, so it comes as soon as it is allowed."""
    for settings, lengths in (({"min_new_tokens": 6}, {7}), ({"suppress_eos": True}, {15})):
        options = decoding_options({"decoding": decoding, "max_new_tokens": 15, "seed": 1, **settings})
        chain = filter_chain(options, generator.tokenizer, (0,))

        def eager(logits: Any, _: Any) -> Any:
            logits = logits.clone()
            logits[:, 0] = logits.amax(dim=1) + 50
            return logits

        with pytest.MonkeyPatch.context() as patch:
            biased = replace(chain, history=[eager, *chain.history])
            patch.setattr("gpt2tg.generation.generator.filter_chain", lambda *_, biased=biased: biased)
            samples = generator.generate("The owl", options)
        assert {len(sample.ids) for sample in samples[:1]} == lengths


def test_max_time_ends_texts(generator: Generator) -> None:
    for decoding in ("greedy", "beam", "contrastive"):
        options = decoding_options({"decoding": decoding, "max_new_tokens": 40, "max_time": 1e-9, "suppress_eos": True})
        (sample, *_) = generator.generate("The owl", options)
        assert sample.finish_reason == "time"
        assert len(sample.ids) == 1


def test_overflow_truncate_shortens_a_long_prompt(model_dir: Path, generator: Generator, capsys: Capture) -> None:
    prompt = "The owl sold silence by the ounce." * 8
    tokens = len(generator.encode(prompt))
    assert run(model_dir, "--prompt", prompt, "--decoding", "greedy") == 2
    assert f"a prompt of {tokens} tokens and 12 new ones exceed the context length of 64" in capsys.readouterr().err
    assert run(model_dir, "--prompt", prompt, "--decoding", "greedy", "--overflow", "truncate") == 0
    out, err = capsys.readouterr()
    assert out.startswith(prompt)
    assert err == f"prompt 1: {tokens + 12 - 64} tokens were dropped at its beginning\n"


@pytest.mark.parametrize("decoding", ["greedy", "top_p", "beam", "contrastive"])
def test_overflow_slide_exceeds_the_context_window(generator: Generator, decoding: str) -> None:
    options = decoding_options(
        {
            "decoding": decoding,
            "max_new_tokens": 300,
            "overflow": "slide",
            "suppress_eos": True,
            "seed": 1,
            "num_beams": 2,
        }
    )
    assert len(generator.generate("The owl", options)[0].ids) == 300


def test_sliding_changes_nothing_within_the_window(generator: Generator) -> None:
    base = {"decoding": "greedy", "max_new_tokens": 20}
    assert generator.generate("The owl", decoding_options({**base, "overflow": "slide"})) == generator.generate(
        "The owl", decoding_options(base)
    )


def test_beams_stream_only_their_common_prefix(generator: Generator) -> None:
    options = decoding_options({"decoding": "beam", "max_new_tokens": 40, "num_sequences": 2})
    chunks = list(generator.stream("The owl", options))
    best = next(chunk.sample for chunk in chunks if chunk.sample and chunk.index == 0)
    assert "".join(chunk.text for chunk in chunks if chunk.index == 0) == best.completion


def test_trailing_spaces_of_prompts_are_reported_once(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    """From a flag and from a file, for one prompt and for several; not if no prompt ends in a space."""
    greedy = ("--decoding", "greedy")
    told = []
    for words in (
        ("--prompt", "The owl "),
        ("--prompts_file", prompts_file(tmp_path, "The owl", "Two bells ")),
        ("--prompts_file", prompts_file(tmp_path, "A ", "B", "C  ", name="more.txt")),
        ("--candidates", "3", "--prompt", "The owl "),
    ):
        assert run(model_dir, *words, *(() if "--candidates" in words else greedy)) == 0
        told.append([line for line in capsys.readouterr().err.splitlines() if " space" in line])
    assert [len(lines) for lines in told] == [1, 1, 1, 1]
    beginnings = [
        "the prompt ends in a space: ",
        "prompt 2 ends in a space: ",
        "2 prompts end (the first is number 1) in a",
    ]
    assert [lines[0].startswith(start) for lines, start in zip(told, beginnings, strict=False)] == [True] * 3
    assert run(model_dir, "--prompt", "The owl", *greedy) == 0
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def storyteller() -> Generator:
    """A model that generates sentences."""
    return load("gpt2-tiny")


@pytest.mark.parametrize(
    "settings",
    [
        {"decoding": "greedy"},
        {"decoding": "top_p", "num_sequences": 4, "seed": 2},
        {"decoding": "beam", "num_beams": 3, "num_sequences": 2},
        {"decoding": "top_p", "num_sequences": 2, "seed": 5, "stop": ("the",)},
    ],
    ids=str,
)
def test_texts_cut_short_end_at_their_last_sentence(storyteller: Generator, settings: dict[str, object]) -> None:
    """Only texts that reached the maximum length are shortened; streamed and returned texts are equal."""
    options = decoding_options({"max_new_tokens": 60, **settings})
    ended: set[str] = set()
    for prompt in ("The old king", "Once upon a time", "The dragon"):  # some texts have no complete sentence
        plain = storyteller.generate(prompt, options)
        chunks = list(storyteller.stream(prompt, replace(options, end_at_sentence=True)))
        samples = sorted((chunk.sample for chunk in chunks if chunk.sample), key=lambda sample: sample.index)
        assert [sample.ids for sample in samples] == [sample.ids for sample in plain]
        for before, after in zip(plain, samples, strict=True):
            streamed = "".join(chunk.text for chunk in chunks if chunk.index == after.index)
            assert streamed == after.completion
            assert before.completion.startswith(after.completion)
            rest = before.completion[len(after.completion) :]
            if after.finish_reason != "length" or after.is_unfinished:
                assert rest == ""
            else:
                assert re.search(r"[.!?][\"']?$", after.completion)
                assert not re.search(r"[.!?][\"']? [A-Z]", rest)
            ended.add("shortened" if rest else after.finish_reason)
    assert ended & {"shortened", "stop"}


def test_text_without_a_complete_sentence_is_kept_and_marked(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "x.jsonl"
    flags = ("--decoding", "greedy", "--prompt", "The owl", "--suppress_eos")
    assert run(model_dir, *flags, "--ban_words", ".", "!", "?") == 0
    text = capsys.readouterr().out
    assert run(model_dir, *flags, "--ban_words", ".", "!", "?", "--end_at_sentence") == 0
    out, err = capsys.readouterr()
    assert out == text
    assert err == "no sentence is complete: the text stays as it is\n"
    assert run(model_dir, *flags, "--end_at_sentence", "--ban_words", ".", "!", "?", "--format", "jsonl",
               "--output", path) == 0  # fmt: skip
    assert capsys.readouterr().err == "no sentence is complete in 1 of 1 texts, which stay as they are\n"
    assert [(entry["unfinished"], entry["finish_reason"]) for entry in records(path)] == [(True, "length")]
