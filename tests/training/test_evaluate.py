"""Measuring a model, against a plain computation over every token."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel, GPT2Model

import gpt2_text_generation
from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.errors import RunError, UserError
from gpt2tg.generation.generator import load
from gpt2tg.options import EvaluationOptions, TrainingOptions
from gpt2tg.training.evaluate import evaluate, sliding_windows
from gpt2tg.training.finetune import finetune
from gpt2tg.training.model import loss

CPU = torch.device("cpu")


@pytest.mark.parametrize(("length", "positions", "stride"), [(10, 4, 2), (10, 4, 1), (11, 4, 3), (3, 8, 4), (9, 8, 1)])
def test_each_token_but_the_first_counts_once(length: int, positions: int, stride: int) -> None:
    counted: list[int] = []
    for start, end, first in sliding_windows(length, positions, stride):
        assert end - start <= positions
        assert start < first
        counted += range(first, end)
    assert counted == list(range(1, length))


def test_out_of_memory_names_the_flag_to_lower(
    text_file: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    for device, advice in ((CPU, "lower --batch_size$"), (torch.device("mps"), "lower --batch_size, or use --device")):
        with pytest.raises(RunError, match=f"^out of memory: {advice}"):
            evaluate(read_checkpoint(model_dir), EvaluationOptions(eval_file=str(text_file)), device)


@pytest.mark.parametrize("stride", [8, 32, 63])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_loss_uses_the_context_of_each_window(
    text_file: Path, model_dir: Path, reference: GPT2LMHeadModel, stride: int, batch_size: int
) -> None:
    options = EvaluationOptions(eval_file=str(text_file), stride=stride, examples="file", batch_size=batch_size)
    found = evaluate(read_checkpoint(model_dir), options, CPU)
    text = text_file.read_text(encoding="utf-8")
    tokenizer = load(str(model_dir)).tokenizer
    ids = [*tokenizer.encode(text), tokenizer.end_id]
    total, start = 0.0, 0
    for position in range(1, len(ids)):
        if position >= start + 64:
            start += stride
        with torch.no_grad():
            logprobs = reference(torch.tensor([ids[start:position]])).logits[0, -1].log_softmax(dim=0)
        total -= logprobs[ids[position]].item()
    assert found.tokens == len(ids) - 1
    assert found.loss == pytest.approx(total / found.tokens, abs=1e-4)
    assert found.perplexity == pytest.approx(math.exp(total / found.tokens), rel=1e-3)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / len(text.encode()), rel=1e-4)


def test_evaluate_task_prints_its_figures(text_file: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--task", "evaluate", "--model_name", str(model_dir), "--eval_file", str(text_file), "--device", "cpu"]
    assert gpt2_text_generation.main(command) == 0
    names = [line.rpartition(" ")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["tokens", "loss", "perplexity", "bits per byte"]


@pytest.mark.parametrize(
    ("settings", "option"),
    [({"eval_file": None}, "eval_file"), ({"stride": 64}, "stride"), ({"eval_file": "no"}, "eval_file")],
)
def test_bad_evaluation_options_are_refused(text_file: Path, model_dir: Path, settings: dict, option: str) -> None:
    with pytest.raises(UserError) as caught:
        evaluate(read_checkpoint(model_dir), EvaluationOptions(**{"eval_file": str(text_file), **settings}), CPU)
    assert caught.value.option == option


def write_rows(directory: Path, count: int, most: int = 1) -> tuple[Path, list[dict[str, str]]]:
    rows = [{"prompt": f"The owl of {n} said:", "completion": f" é{n} ha" * (1 + n % 3 * most)} for n in range(count)]
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path, rows


@pytest.mark.parametrize("stride", [8, 63])
def test_prompts_are_context_and_do_not_count(
    tmp_path: Path, model_dir: Path, reference: GPT2LMHeadModel, stride: int
) -> None:
    """The loss equals that of transformers for each token of a completion, in the context of its own row."""
    path, rows = write_rows(tmp_path, 9, most=9)
    tokenizer = load(str(model_dir)).tokenizer
    total, count = 0.0, 0
    for row in rows:
        prompt, completion = tokenizer.encode(row["prompt"]), [*tokenizer.encode(row["completion"]), tokenizer.end_id]
        ids = prompt + completion
        start = 0
        for position in range(1, len(ids)):
            if position >= start + 64:
                start += stride
            if position >= len(prompt):
                with torch.no_grad():
                    logprobs = reference(torch.tensor([ids[start:position]])).logits[0, -1].log_softmax(dim=0)
                total -= logprobs[ids[position]].item()
                count += 1
    options = EvaluationOptions(eval_file=str(path), stride=stride, batch_size=2)
    found = evaluate(read_checkpoint(model_dir), options, CPU)
    assert found.tokens == count
    assert found.loss == pytest.approx(total / count, abs=1e-4)
    size = sum(len(row["completion"].encode()) for row in rows)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / size, rel=1e-4)


def test_loss_of_a_table_equals_the_validation_loss(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    text_file: Path,
    model_dir: Path,
) -> None:
    """Each row is read alone in both, whatever block or batch it is in."""
    path, _ = write_rows(tmp_path_factory.mktemp("rows"), 7)
    options = TrainingOptions(
        train_file=str(text_file),
        validation_file=str(path),
        output_dir=str(tmp_path / "out"),
        block_size=64,
        max_steps=1,
    )
    found = evaluate(read_checkpoint(model_dir), EvaluationOptions(eval_file=str(path)), CPU)
    assert found.loss == pytest.approx(finetune(options, str(model_dir)).loss_before, abs=1e-5)


def test_evaluation_never_holds_all_logits(text_file: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation needs no more memory than training: logits of a few rows at a time, and no KV cache."""
    most, cached = [], []
    made, forward = loss._log_probabilities, GPT2Model.forward
    monkeypatch.setattr(loss, "ROWS", 16)
    monkeypatch.setattr(loss, "_log_probabilities", lambda *given: most.append(len(given[0])) or made(*given))
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda *_: pytest.fail("the output layer made whole logits"))

    def watched(*given: object, **settings: object) -> object:
        found = forward(*given, **settings)
        cached.append(found.past_key_values)
        return found

    monkeypatch.setattr(GPT2Model, "forward", watched)
    found = evaluate(read_checkpoint(model_dir), EvaluationOptions(eval_file=str(text_file), examples="file"), CPU)
    assert math.isfinite(found.loss)
    assert max(most) == 16
    assert set(cached) == {None}


@pytest.mark.parametrize("stride", [16, 48])
def test_loss_equals_the_strided_loop_of_transformers(
    text_file: Path, model_dir: Path, reference: GPT2LMHeadModel, stride: int
) -> None:
    """That loop masks the labels of tokens counted before, and weights each window by its predicted tokens."""
    tokenizer = load(str(model_dir)).tokenizer
    ids = torch.tensor([[*tokenizer.encode(text_file.read_text(encoding="utf-8")), tokenizer.end_id]])
    total, count, previous_end = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + 64, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : previous_end - begin] = -100
        with torch.no_grad():
            loss = reference(ids[:, begin:end], labels=labels).loss.item()
        predicted = int((labels[:, 1:] != -100).sum())
        total, count, previous_end = total + loss * predicted, count + predicted, end
        if end == ids.shape[1]:
            break
    options = EvaluationOptions(eval_file=str(text_file), stride=stride, examples="file", batch_size=2)
    found = evaluate(read_checkpoint(model_dir), options, CPU)
    assert (found.tokens, found.loss) == (count, pytest.approx(total / count, abs=1e-5))
