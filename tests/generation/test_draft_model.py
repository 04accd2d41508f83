"""Draft models: which are accepted, and that no text depends on them."""

from __future__ import annotations

import io
import json
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import kernels_here, random_model

import generate_from_finetuned
import gpt2_text_generation
import text_generation_demo
from gpt2tg.decoding.pace import Pace
from gpt2tg.engine.captured_context import ForwardStep
from gpt2tg.engine.cuda_graph import GraphCapture
from gpt2tg.engine.model import GPT2
from gpt2tg.errors import UserError
from gpt2tg.generation.draft_model import DraftModel
from gpt2tg.generation.generator import Generator, Sample, load
from gpt2tg.options import decoding_options

Capture = pytest.CaptureFixture[str]

PROMPT = "The owl counted the stars"


@pytest.fixture(scope="module")
def draft_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is similar to the one in `model_dir`, so that it often agrees."""
    directory = shutil.copytree(model_dir, tmp_path_factory.mktemp("draft") / "draft")
    similar = random_model()
    with torch.no_grad():
        for weight in similar.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    similar.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def plain(model_dir: Path) -> Generator:
    return load(str(model_dir), "cpu")


@pytest.fixture(scope="module")
def drafted(model_dir: Path, draft_dir: Path) -> Generator:
    return load(str(model_dir), "cpu", draft_model=draft_dir)


@pytest.fixture
def any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses are as long as chance says, whatever they cost: the models here are too small for drafts to pay."""
    chance = random.Random(1)
    monkeypatch.setattr(Pace, "next_length", lambda *_: chance.choice([0, 1, 2, 4, 9]))


SETTINGS: dict[str, dict[str, object]] = {
    "greedy": {"decoding": "greedy"},
    "greedy, lookup off": {"decoding": "greedy", "prompt_lookup": 0},
    "greedy, repetition penalty": {"decoding": "greedy", "repetition_penalty": 1.3, "penalty_window": 5},
    "greedy, bans": {"decoding": "greedy", "ban_words": ("owl", "the"), "bias": ("a=2",), "no_repeat_ngram": 2},
    "greedy, to the last position": {"decoding": "greedy", "max_new_tokens": None, "max_length": 64},
    "sample": {"decoding": "sample"},
    "sample, one text": {"decoding": "sample", "num_sequences": 1},
    "sample, cold": {"decoding": "sample", "temperature": 0.2, "typical_p": 0.9},
    "sample, minimum": {"decoding": "sample", "min_new_tokens": 20, "frequency_penalty": 0.5},
    "top_k": {"decoding": "top_k", "top_k": 5, "presence_penalty": 0.4},
    "top_p": {"decoding": "top_p", "min_p": 0.02, "num_sequences": 5},
    "top_p, lookup": {"decoding": "top_p", "prompt_lookup": 4},
    "top_p, stop": {"decoding": "top_p", "stop": ("e", "s"), "keep_stop": True},
    "top_p, best of": {"decoding": "top_p", "best_of": 4, "num_sequences": 2},
    "top_p, to the last position": {"decoding": "top_p", "max_new_tokens": None, "max_length": 64},
    "top_p, all banned at last": {"decoding": "top_p", "no_repeat_ngram": 1, "suppress_eos": True, "top_p": 1.0},
    "top_p, sliding": {"decoding": "top_p", "overflow": "slide", "max_new_tokens": 70},
    "beam": {"decoding": "beam"},
    "contrastive": {"decoding": "contrastive"},
}


@pytest.mark.usefixtures("any_length")
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_texts_are_the_same_to_the_bit_with_a_draft(
    plain: Generator, drafted: Generator, settings: dict[str, object]
) -> None:
    """Ids, log-probabilities and finish reasons, of one prompt and of a batch."""
    kernels_here()
    seed = {"seed": 7} if settings["decoding"] in ("sample", "top_k", "top_p") else {}
    options = decoding_options({"max_new_tokens": 25, **seed, **settings})
    assert drafted.generate(PROMPT, options) == plain.generate(PROMPT, options)
    prompts = ["A fox", PROMPT, "The owl counted the owl counted the owl"]
    requests = [plain.fit(prompt, options, index) for index, prompt in enumerate(prompts)]
    assert drafted.generate_batch(requests, options) == plain.generate_batch(requests, options)


@pytest.mark.usefixtures("any_length")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_drafts_are_right_often_and_save_forward_passes(model_dir: Path, draft_dir: Path, precision: str) -> None:
    """The draft is in int8, the model in another precision."""
    kernels_here()
    generator = load(str(model_dir), "cpu", precision=precision, draft_model=draft_dir)
    for seed in range(4):
        options = decoding_options({"decoding": "top_p", "seed": seed, "max_new_tokens": 40, "suppress_eos": True})
        generator.generate(PROMPT, options)
    assert generator.draft
    assert generator.draft.model.precision == "int8"
    assert 0.3 * generator.draft.pace.guessed < generator.draft.pace.right < generator.draft.pace.guessed


def new_draft(model: GPT2, **config: object) -> DraftModel:
    """A draft of any shape, whose weights have nothing to do with those of the model."""
    from gpt2tg.checkpoint.shape import ModelShape

    found: ModelShape = replace(model.shape, **config)
    weights = {name: torch.randn(size, generator=torch.Generator().manual_seed(1)) for name, size in found.tensors()}
    return DraftModel(GPT2(weights, found, torch.device("cpu")), model)


@pytest.mark.usefixtures("any_length")
def test_draft_may_have_any_shape_and_a_shorter_context(plain: Generator) -> None:
    kernels_here()
    for shape in ({"n_layer": 1, "n_embd": 16, "n_inner": 20, "n_head": 2}, {"n_positions": 12}, {"n_positions": 3}):
        drafted = Generator(plain.model, plain.tokenizer, draft=new_draft(plain.model, **shape))
        options = decoding_options({"decoding": "sample", "seed": 2, "max_new_tokens": 30})
        assert drafted.generate(PROMPT, options) == plain.generate(PROMPT, options)


@pytest.mark.usefixtures("any_length")
def test_interleaved_streams_with_a_draft_stay_apart(plain: Generator, drafted: Generator) -> None:
    """A stream that is closed early does not matter either."""
    kernels_here()
    options = decoding_options({"decoding": "top_p", "seed": 3, "num_sequences": 1, "max_new_tokens": 30})
    prompts = (PROMPT, "The owl counted")
    next(drafted.stream(PROMPT, options))
    finished: list[list[Sample]] = [[], []]
    for pair in zip_longest(*(drafted.stream(prompt, options) for prompt in prompts)):
        for samples, chunk in zip(finished, pair, strict=True):
            if chunk and chunk.sample:
                samples.append(chunk.sample)
    assert finished == [plain.generate(prompt, options) for prompt in prompts]


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt2tg.engine.cpu import kernels

    monkeypatch.setattr(kernels, "load", lambda: None)


@pytest.mark.usefixtures("without_kernels")
def test_without_kernels_one_text_is_drafted_and_repeats(model_dir: Path, draft_dir: Path) -> None:
    """torch rounds differently when it reads several tokens, so the guesses themselves must be the same every time."""
    plain, drafted = load(str(model_dir), "cpu"), load(str(model_dir), "cpu", draft_model=draft_dir)
    for count in (1, 3):
        options = decoding_options({"decoding": "top_p", "seed": 4, "num_sequences": count, "max_new_tokens": 25})
        first = drafted.generate(PROMPT, options)
        assert [sample.ids for sample in first] == [sample.ids for sample in plain.generate(PROMPT, options)]
        assert drafted.generate(PROMPT, options) == first
    assert drafted.draft
    assert drafted.draft.pace.guessed == 0, "what is learned from a text does not change the next one"


# With CUDA graphs. Here a graph is a function that runs the step.


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, int]]:
    """The model and the tokens of each forward pass that is a graph."""
    log: list[tuple[object, int]] = []

    def graph_of(self: GraphCapture, step: Callable[[], None]) -> object:
        forward = step.__self__  # type: ignore[attr-defined]
        tokens = len(forward.inputs) - 1 if isinstance(forward, ForwardStep) else 1
        kind = (forward._model, tokens)
        return SimpleNamespace(replay=lambda: (log.append(kind), step()))

    monkeypatch.setattr(GraphCapture, "graph_of", graph_of)
    return log


def with_graphs(generator: Generator) -> Generator:
    """Let a generator work as on a CUDA GPU."""
    for model in (generator.model, *([generator.draft.model] if generator.draft else [])):
        model.graph_capture = GraphCapture(model.device, is_on=True)
    generator.continuous_batches.are_used = True
    return generator


@pytest.mark.usefixtures("without_kernels", "any_length")
@pytest.mark.parametrize("settings", [{"decoding": "greedy"}, {"decoding": "top_p", "seed": 4}], ids=str)
def test_guesses_are_made_and_verified_in_graphs(
    model_dir: Path, draft_dir: Path, settings: dict[str, object], replays: list[tuple[object, int]]
) -> None:
    plain, drafted = load(str(model_dir), "cpu"), with_graphs(load(str(model_dir), "cpu", draft_model=draft_dir))
    options = decoding_options({"num_sequences": 1, "max_new_tokens": 50, **settings})
    for prompt in (PROMPT, "The fox", PROMPT):
        assert drafted.generate(prompt, options)[0].ids == plain.generate(prompt, options)[0].ids
    assert drafted.draft
    assert {tokens for model, tokens in replays if model is drafted.draft.model} >= {1, 2}
    assert {tokens for model, tokens in replays if model is drafted.model} >= {1, 2, 4, 8}


@pytest.mark.usefixtures("without_kernels", "any_length")
def test_graphs_of_the_last_text_serve_the_next_one(
    model_dir: Path, draft_dir: Path, replays: list[tuple[object, int]]
) -> None:
    drafted = with_graphs(load(str(model_dir), "cpu", draft_model=draft_dir))
    options = decoding_options({"decoding": "greedy", "max_new_tokens": 50, "suppress_eos": True})
    drafted.generate(PROMPT, options)
    replays.clear()
    drafted.generate(PROMPT, replace(options, max_new_tokens=2))
    assert replays


@pytest.mark.usefixtures("without_kernels", "any_length")
@pytest.mark.parametrize("batch_size", [1, 8])
def test_several_prompts_are_drafted_one_at_a_time(
    model_dir: Path, draft_dir: Path, batch_size: int, replays: list[tuple[object, int]]
) -> None:
    """Several texts at a time are faster without a draft: they choose their tokens inside a graph."""
    plain, drafted = load(str(model_dir), "cpu"), with_graphs(load(str(model_dir), "cpu", draft_model=draft_dir))
    drafted.continuous_batches.are_used = True
    options = decoding_options({"decoding": "greedy", "max_new_tokens": 30})
    requests = [drafted.fit(prompt, options, index) for index, prompt in enumerate([PROMPT, "The fox"])]
    found = list(drafted.generate_each(requests, options, batch_size))
    assert [texts[0].ids for texts in found] == [plain.generate(r.prompt, options)[0].ids for r in requests]
    assert any(tokens > 1 for _, tokens in replays) == (batch_size == 1)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("words", [["--num_sequences", "2"], ["--prompts_file", "prompts"]], ids=" ".join)
def test_texts_without_drafts_are_said(
    words: list[str], model_dir: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts").write_text("The owl\nA fox\n", encoding="utf-8")
    model = ["--model_path", str(model_dir), "--draft_model", str(model_dir), "--max_new_tokens", "5"]
    asked = [*model, *words, *(["--num_sequences", "1"] if "--prompts_file" in words else ["--prompt", "The"])]
    assert generate_from_finetuned.main(asked) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "draft" in line)
    assert line.startswith("--draft_model is not used on this device for several texts at a time")
    assert generate_from_finetuned.main([*asked, "--batch_size", "1", "--num_sequences", "1"]) == 0
    assert "draft" not in capsys.readouterr().err


# Which drafts are accepted


def test_draft_with_another_tokenizer_is_refused(model_dir: Path, checkpoint: Path) -> None:
    """Also one with the same number of tokens."""
    with pytest.raises(UserError, match=r"draft_model gpt2-tiny cannot draft .* \(8,192 and 300 ids\): give a model"):
        load(str(model_dir), "cpu", draft_model="gpt2-tiny")
    file = checkpoint / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"draft_model .* cannot draft for .*, since their tokens differ: give a model"):
        load(str(model_dir), "cpu", draft_model=checkpoint)


def test_missing_draft_is_named_before_anything_is_loaded(model_dir: Path, capsys: Capture) -> None:
    words = ["--model_path", str(model_dir), "--prompt", "A", "--draft_model", str(model_dir / "missing")]
    assert generate_from_finetuned.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"error: --draft_model {model_dir / 'missing'}" in err


@pytest.mark.parametrize(
    ("script", "flag", "rest"),
    [
        (generate_from_finetuned, "--model_path", []),
        (gpt2_text_generation, "--model_name", ["--task", "generate"]),
        (text_generation_demo, "--model_name", ["--compare", "--strategies", "top_p,greedy,beam"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_script_takes_a_draft(
    script: object, flag: str, rest: list[str], model_dir: Path, draft_dir: Path, capsys: Capture
) -> None:
    words = [flag, str(model_dir), "--prompt", "The fox", "--seed", "3", "--max_new_tokens", "9", *rest]
    printed = []
    for more in ([], ["--draft_model", str(draft_dir)]):
        assert script.main([*words, *more]) == 0  # type: ignore[attr-defined]  # a module
        out, err = capsys.readouterr()
        assert "draft" not in err
        printed.append(out)
    if "--compare" not in rest:  # which has figures of speed
        assert printed[0] == printed[1]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--decoding", "beam"], "--decoding beam does not use it"),
        (["--decoding", "contrastive"], "--decoding contrastive does not use it"),
        (["--overflow", "slide", "--max_new_tokens", "70"], "for texts that may exceed the context length of 64"),
        (["--candidates", "3"], "--candidates shows the model's own probabilities of the next token"),
        (["--score", "lines"], "--score measures given lines as they are"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_unused_draft_is_said(
    words: list[str], why: str, model_dir: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lines").write_text("The owl\n", encoding="utf-8")
    model = [
        "--model_path",
        str(model_dir),
        "--draft_model",
        str(model_dir),
        "--prompt",
        "The",
        "--max_new_tokens",
        "5",
    ]
    if "--max_new_tokens" in words:
        model = model[:-2]
    assert generate_from_finetuned.main([*model, *words]) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "draft" in line)
    assert line == f"--draft_model is not used{'' if why.startswith('for') else ':'} {why}"


def test_session_keeps_its_draft_for_models_with_the_same_tokens(
    model_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/model gpt2-tiny\nA\n/model {model_dir}\nThe\n"))
    words = ["--model_path", str(model_dir), "--draft_model", str(model_dir), "--interactive", "--max_new_tokens", "4"]
    assert generate_from_finetuned.main(words) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "draft" in line]
    assert len(lines) == 1
    assert "--draft_model" in lines[0]
    assert "cannot draft for gpt2-tiny" in lines[0]
