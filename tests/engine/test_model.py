"""Our forward pass against transformers' GPT2LMHeadModel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import kernels_here, random_ids, random_model, read_gpt2
from torch import Tensor
from transformers import GPT2LMHeadModel

from gpt2tg.decoding.sampling import decode, most_probable
from gpt2tg.engine import matrix_choice
from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.cpu import kernels
from gpt2tg.engine.model import GPT2

TOLERANCE = 1e-4


@pytest.fixture(autouse=True, params=["kernels", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute with our kernels, and with torch as where there are none."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "load", lambda: None)
        monkeypatch.setattr(matrix_choice, "_cached_fastest", lambda *_: "split")
    else:
        kernels_here()


@pytest.fixture
def gpt2(model_dir: Path, backend: None) -> GPT2:
    """The tiny model, on either backend."""
    return read_gpt2(model_dir)


def reference_logits(model: GPT2LMHeadModel, ids: list[int]) -> Tensor:
    """Return (V,) logits after the last id."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


def assert_same_as_transformers(model: GPT2LMHeadModel, directory: Path, prompt: list[int], steps: int) -> None:
    """Prefill a prompt and decode token by token; compare each step with transformers on the whole text."""
    model.save_pretrained(directory)
    rows = new_context(read_gpt2(directory), len(prompt) + steps)
    ids, logits = list(prompt), rows.start([prompt])
    for token in random_ids(steps, seed=1, vocabulary=model.config.vocab_size):
        torch.testing.assert_close(logits[0], reference_logits(model, ids), atol=TOLERANCE, rtol=0)
        ids.append(token)
        logits = rows.step(torch.tensor([token]))
    torch.testing.assert_close(logits[0], reference_logits(model, ids), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"n_inner": 48},
        {"activation_function": "gelu"},
        {"activation_function": "gelu_fast"},
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "relu"},
        {"scale_attn_weights": False, "initializer_range": 0.1},
        {"scale_attn_by_inverse_layer_idx": True},
        {"layer_norm_epsilon": 1e-2},
        {"tie_word_embeddings": False},
        {"n_head": 1, "n_layer": 1},
    ],
    ids=str,
)
def test_logits_equal_transformers(config: dict, tmp_path: Path) -> None:
    assert_same_as_transformers(random_model(**config), tmp_path, random_ids(9), steps=6)


def test_matrices_of_gpt2_equal_transformers(tmp_path: Path) -> None:
    """Three of its twelve layers are enough, which are alike."""
    torch.manual_seed(0)
    model = random_model(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=3, n_head=12, initializer_range=0.02)
    prompt = random_ids(40, vocabulary=50257)
    assert_same_as_transformers(model, tmp_path, prompt, steps=3)
    mask = torch.ones(1, 40, dtype=torch.long)
    expected = model.generate(
        torch.tensor([prompt]), attention_mask=mask, do_sample=False, max_new_tokens=12, pad_token_id=0
    )[0, 40:]
    rows = new_context(read_gpt2(tmp_path), 52)
    greedy = decode(
        rows, [prompt], [0], [], most_probable, lambda _, ids: "length" if len(ids) == len(expected) else None
    )
    assert [token.id for token in greedy] == expected.tolist()


def test_logits_at_the_last_position_equal_transformers(tmp_path: Path) -> None:
    assert_same_as_transformers(random_model(), tmp_path, random_ids(60), steps=4)


def test_capacity_beyond_the_positions_is_an_error(gpt2: GPT2) -> None:
    with pytest.raises(ValueError, match="65 tokens asked for, but the model has 64 positions"):
        new_context(gpt2, 65)


@pytest.mark.parametrize("lengths", [[5, 5, 5], [1, 9, 4], [30, 2]], ids=str)
def test_row_does_not_depend_on_other_rows(gpt2: GPT2, reference: GPT2LMHeadModel, lengths: list[int]) -> None:
    """Rows of equal and unequal length in one batch, against each row alone in transformers."""
    prompts = [random_ids(length, seed) for seed, length in enumerate(lengths)]
    rows = new_context(gpt2, max(lengths) + 5)
    logits = rows.start(prompts)
    for step in range(5):
        expected = torch.stack([reference_logits(reference, prompt) for prompt in prompts])
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
        tokens = random_ids(len(prompts), seed=step)
        prompts = [[*prompt, token] for prompt, token in zip(prompts, tokens, strict=True)]
        logits = rows.step(torch.tensor(tokens))


@pytest.mark.parametrize(
    "selection",
    [[0, 1, 2], [2, 1, 0], [1, 1, 1], [2], [0, 2], [0, 0, 1, 1, 2, 2], [1, 2, 0]],
    ids=str,
)
def test_selected_rows_continue_like_their_sources(
    gpt2: GPT2, reference: GPT2LMHeadModel, selection: list[int]
) -> None:
    prompts = [random_ids(length, seed) for seed, length in enumerate([6, 3, 8])]
    rows = new_context(gpt2, 16)
    rows.start(prompts)
    rows.step(torch.tensor([11, 12, 13]))
    rows.select(selection)
    tokens = random_ids(len(selection), seed=5)
    logits = rows.step(torch.tensor(tokens))
    texts = [[*prompt, 11 + i] for i, prompt in enumerate(prompts)]
    expected = [
        reference_logits(reference, [*texts[source], token]) for source, token in zip(selection, tokens, strict=True)
    ]
    torch.testing.assert_close(logits, torch.stack(expected), atol=TOLERANCE, rtol=0)


def test_forward_pass_changes_no_weight(model_dir: Path) -> None:
    model = read_gpt2(model_dir)
    before = {name: tensor.clone() for name, tensor in model.weights.items()}
    rows = new_context(model, 10)
    rows.start([[1, 2, 3]])
    rows.step(torch.tensor([4]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.weights.items())


def test_uninitialised_memory_does_not_reach_the_logits(gpt2: GPT2) -> None:
    """A short row beside a long one has unwritten slots. NaN in them once spread to all logits."""
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    try:
        rows = new_context(gpt2, 20)
        rows.start([[1], [2, 3, 4, 5]])
        rows.step(torch.tensor([6, 7]))
        rows.select([0, 0, 1])
        rows.step(torch.tensor([8, 9, 10]))
        logits = rows.step(torch.tensor([8, 9, 10]))
    finally:
        torch.use_deterministic_algorithms(False)
    assert logits.isfinite().all()
