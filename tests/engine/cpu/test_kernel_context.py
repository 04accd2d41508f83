"""Contexts of the kernels, against torch and against texts that are read anew, for this CPU and for AVX2."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import kernels_here, random_ids, random_model, read_gpt2
from torch import Tensor

from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.weights import read_weights
from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.cpu import kernel_context, kernels
from gpt2tg.engine.cpu.kernel_context import KernelContext
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.torch_context import TorchContext

PRECISIONS = ["fp32", "fp16", "int8"]


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    """If the kernels do not compile where they should, the tests fail instead of being skipped."""
    kernels_here()


def read_in(directory: Path, precision: str) -> GPT2:
    shape = read_shape(directory)
    return GPT2(read_weights(directory, shape), shape, torch.device("cpu"), precision)


def rows_of(model: GPT2, capacity: int, keep_hidden: bool = False) -> KernelContext:
    rows = new_context(model, capacity, keep_hidden)
    assert isinstance(rows, KernelContext)
    return rows


def read_anew(model: GPT2, text: list[int]) -> Tensor:
    """Return (V,) logits after a text that the kernels read from its beginning."""
    return rows_of(model, len(text)).start([text])[0]


def all_by_torch(model: GPT2, text: list[int]) -> Tensor:
    """Return (T, V) logits after each token, by torch; keys and values are rounded as in the kernels' cache."""

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if model.precision != "fp32":
            key, value = key.half().float(), value.half().float()
        return model.causal_attention(layer, query, key, value)

    with torch.inference_mode():
        return model.logits(model.hidden(torch.tensor([text]), torch.arange(len(text))[None], attend)[0])


def allowed(model: GPT2) -> float:
    """Return how far logits may differ, as a share of the largest. A key halfway between two fp16 numbers may be
    rounded to either."""
    return 1e-5 if model.precision == "fp32" else 5e-4


def run_random_operations(model: GPT2, seed: int, count: int) -> None:
    """Call random methods of a context. After each, all logits equal those of texts read anew, bit for bit."""
    chance = random.Random(seed)
    vocabulary, capacity = model.shape.vocab_size, 40

    def ids(count: int) -> list[int]:
        return [chance.randrange(vocabulary) for _ in range(count)]

    texts = [ids(chance.randint(1, 15)) for _ in range(chance.randint(1, 4))]
    rows = rows_of(model, capacity)
    logits = rows.start(texts)
    for _ in range(count):
        for row, text in enumerate(texts):
            assert torch.equal(logits[row], read_anew(model, text))
        longest = max(map(len, texts))
        operation = chance.choice(["step", "select", "permute", "read", "extend", "append", "start"])
        if operation == "select":
            chosen = [chance.randrange(len(texts)) for _ in range(chance.randint(1, 6))]
        elif operation == "permute":
            chosen = chance.sample(range(len(texts)), len(texts))
        if operation in ("select", "permute"):
            rows.select(chosen)
            texts = [list(texts[row]) for row in chosen]
            logits = logits[chosen]
        if operation == "step" and longest < capacity:
            tokens = ids(len(texts))
            logits = rows.step(torch.tensor(tokens))
            texts = [[*text, token] for text, token in zip(texts, tokens, strict=True)]
        if operation == "read":
            anew = {row: ids(chance.randint(1, 20)) for row in range(len(texts)) if chance.random() < 0.5}
            if anew:
                logits = logits.clone()
                logits[list(anew)] = rows.read(anew)
                texts = [anew.get(row, text) for row, text in enumerate(texts)]
        if operation == "extend" and longest < capacity - 6:
            more = {row: ids(chance.randint(1, 5)) for row in range(len(texts)) if chance.random() < 0.7 or not row}
            read = iter(rows.extend(more))
            logits, back = logits.clone(), [0] * len(texts)
            for row, tokens in more.items():
                kept = chance.randint(1, len(tokens))
                for n, found in enumerate(itertools.islice(read, len(tokens)), start=1):
                    assert torch.equal(found, read_anew(model, [*texts[row], *tokens[:n]]))
                    if n == kept:
                        logits[row] = found
                back[row], texts[row] = len(tokens) - kept, [*texts[row], *tokens[:kept]]
            rows.take_back(back)
        if operation == "append" and longest < capacity - 6:
            more = {row: ids(chance.randint(1, 5)) for row in chance.sample(range(len(texts)), (len(texts) + 1) // 2)}
            logits = logits.clone()
            logits[list(more)] = rows.extend(more, every=False)
            texts = [[*text, *more.get(row, [])] for row, text in enumerate(texts)]
        if operation == "start":
            source = chance.choice(texts)
            texts = [[*source[: chance.randint(0, len(source))], *ids(2)][:capacity]]
            logits = rows.start(texts)
        assert rows.lengths == [len(text) for text in texts]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("seed", range(6))
def test_row_equals_its_text_after_random_operations(
    library: kernels.Kernels, model_dir: Path, precision: str, seed: int
) -> None:
    run_random_operations(read_in(model_dir, precision), seed, count=40)


SHAPES = {
    "width 12": {"n_embd": 12, "n_head": 4},
    "width 20": {"n_embd": 20, "n_head": 4, "n_inner": 50},
    "width 36, odd vocabulary": {"n_embd": 36, "n_head": 2, "vocab_size": 257},
    "heads of 1": {"n_embd": 8, "n_head": 8},
    "heads of 3": {"n_embd": 9, "n_head": 3},
    "heads of 5": {"n_embd": 15, "n_head": 3},
    "heads of 16": {"n_embd": 48, "n_head": 3},
    "heads of 64": {"n_embd": 128, "n_head": 2, "initializer_range": 0.1},
    "heads of 80": {"n_embd": 160, "n_head": 2, "initializer_range": 0.1},
    "gelu": {"activation_function": "gelu"},
    "gelu_fast": {"activation_function": "gelu_fast"},
    "relu": {"activation_function": "relu"},
    "an untied head": {"tie_word_embeddings": False},
    "scores scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    "scores not scaled": {"scale_attn_weights": False, "initializer_range": 0.1},
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_kernels_equal_torch(library: kernels.Kernels, config: dict, precision: str, tmp_path: Path) -> None:
    """With the same rounded weights: rows of unequal length are prefilled, stepped and extended."""
    random_model(**{"n_positions": 40, **config}).save_pretrained(tmp_path)
    model = read_in(tmp_path, precision)
    vocabulary = model.shape.vocab_size
    texts = [random_ids(length, length, vocabulary) for length in (1, 7, 30)]
    rows = rows_of(model, 40)
    logits = rows.start(texts)
    for step in range(4):
        expected = torch.stack([all_by_torch(model, text)[-1] for text in texts])
        assert float((logits - expected).abs().max()) <= allowed(model) * float(expected.abs().max())
        tokens = random_ids(3, 50 + step, vocabulary)
        texts = [[*text, token] for text, token in zip(texts, tokens, strict=True)]
        logits = rows.step(torch.tensor(tokens))
    rows.select([2])
    more = random_ids(6, 60, vocabulary)
    logits, whole = rows.extend({0: more}), all_by_torch(model, [*texts[2], *more])[-6:]
    assert float((logits - whole).abs().max()) <= allowed(model) * float(whole.abs().max())


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_rounded_weights_have_a_cache_in_fp16(library: kernels.Kernels, model_dir: Path, precision: str) -> None:
    """The logits are nearer to torch's with rounded keys and values than to torch's without."""
    model, text = read_in(model_dir, precision), random_ids(30, 3)
    logits = torch.cat([(rows := rows_of(model, 30)).start([text[:1]]), rows.extend({0: text[1:]})])
    rounded, exact = all_by_torch(model, text), next(model.all_logits(text))
    assert 10 * float((logits - rounded).abs().median()) < float((logits - exact).abs().median())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_values_beyond_fp16_are_cached_as_the_largest(library: kernels.Kernels, precision: str, tmp_path: Path) -> None:
    """Infinite keys or values would make the logits NaN."""
    model = random_model(n_positions=40)
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.bias[32:] = 1e6  # of keys and values
    model.save_pretrained(tmp_path)
    text = random_ids(9, 1)
    logits = rows_of(read_in(tmp_path, precision), 40).start([text])
    assert logits.isfinite().all()


@pytest.mark.parametrize("threads", [2, 3])
def test_thread_count_changes_no_bit(library: kernels.Kernels, model_dir: Path, threads: int) -> None:
    model = read_gpt2(model_dir)
    texts = [random_ids(length, length) for length in (20, 3)]
    alone = rows_of(model, 30).start(texts)
    torch.set_num_threads(threads)
    try:
        together = rows_of(model, 30).start(texts)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(alone, together)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunk_size_of_a_prefill_changes_no_bit(gpt2: GPT2, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    texts = [random_ids(length, seed=length) for length in (20, 1, 9, 6)]

    def read() -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        rows = rows_of(gpt2, 40, keep_hidden=True)
        started, hidden = rows.start(texts), rows.hidden()
        stepped = rows.step(torch.tensor([5, 6, 7, 8]))
        rows.select([0])
        return started, stepped, rows.extend({0: [9, 10, 11, 12, 13]}), hidden

    whole = read()
    monkeypatch.setattr(kernel_context, "CHUNK", chunk)
    in_chunks = read()
    assert all(torch.equal(a, b) for a, b in zip(whole[:3], in_chunks[:3], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[3], in_chunks[3], strict=True))


@pytest.mark.parametrize(
    ("head", "precision"),
    [(8, "fp32"), (16, "fp32"), (20, "fp32"), (32, "fp16"), (64, "fp32"), (64, "int8"), (80, "fp16")],
)
def test_prefill_and_decode_steps_give_the_same_bits(
    library: kernels.Kernels, tmp_path: Path, head: int, precision: str
) -> None:
    """More tokens than one block of a product; queries attend in groups and one by one."""
    random_model(n_positions=400, n_embd=2 * head, n_head=2).save_pretrained(tmp_path)
    model, ids = read_in(tmp_path, precision), random_ids(300, 1)
    at_once, one_by_one = rows_of(model, 400), rows_of(model, 400)
    logits = one_by_one.start([ids[:1]])
    for token in ids[1:]:
        logits = one_by_one.step(torch.tensor([token]))
    assert torch.equal(at_once.start([ids]), logits)
    for count in range(1, 12):
        following = random_ids(count, seed=count)
        stepped = [one_by_one.step(torch.tensor([token])) for token in following]
        assert torch.equal(at_once.extend({0: following}), torch.cat(stepped))


def test_hidden_states_equal_those_of_torch(library: kernels.Kernels, model_dir: Path) -> None:
    model = read_gpt2(model_dir)
    ours, torchs = rows_of(model, 20, keep_hidden=True), TorchContext(model, 20, keep_hidden=True)
    texts = [random_ids(9, 1), random_ids(4, 2)]
    for rows in (ours, torchs):
        rows.start(texts)
    for act in (lambda rows: None, lambda rows: rows.step(torch.tensor([5, 6]))):
        for rows in (ours, torchs):
            act(rows)
        assert [tuple(states.shape) for states in ours.hidden()] == [tuple(states.shape) for states in torchs.hidden()]
        for mine, theirs in zip(ours.hidden(), torchs.hidden(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def count_tokens_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each forward pass of the kernels adds its number of tokens."""
    read: list[int] = []
    original = KernelContext._read

    def counted(self: KernelContext, texts: dict, logits_of_all: bool) -> Tensor:
        read.append(sum(map(len, texts.values())))
        return original(self, texts, logits_of_all)

    monkeypatch.setattr(KernelContext, "_read", counted)
    return read


@pytest.mark.parametrize("begin", ["as the first row", "as the second row", "as nothing before"])
def test_prompt_is_read_from_the_end_of_a_cached_prefix(
    gpt2: GPT2, monkeypatch: pytest.MonkeyPatch, begin: str
) -> None:
    texts = [random_ids(12, 1), random_ids(12, 2)]
    rows = rows_of(gpt2, 30)
    rows.start(texts)
    source = {"as the first row": texts[0][:10], "as the second row": texts[1][:12], "as nothing before": [299]}[begin]
    prompt = [*source, 7, 8, 9]
    expected = read_anew(gpt2, prompt)
    read = count_tokens_read(monkeypatch)
    assert torch.equal(rows.start([prompt])[0], expected)
    assert sum(read) == (4 if begin == "as nothing before" else 3)
    assert torch.equal(rows.start([prompt])[0], expected)
    assert read[-1] == 1, "the last token of a cached text is read again for its logits"


CALLS: dict[str, Callable[[KernelContext], object]] = {
    "step": lambda rows: rows.step(torch.tensor([1])),
    "extend": lambda rows: rows.extend({0: [1, 2]}),
    "start": lambda rows: rows.start([random_ids(21)]),
    "read": lambda rows: rows.read({0: random_ids(21)}),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_full_row_is_an_error(gpt2: GPT2, call: Callable[[KernelContext], object]) -> None:
    """The capacity is 20, although the allocated cache is wider and the model has 64 positions."""
    rows = rows_of(gpt2, 20)
    rows.start([random_ids(20)])
    with pytest.raises(IndexError, match="holds 20 tokens"):
        call(rows)


def test_row_full_at_the_last_position_is_an_error(tmp_path: Path) -> None:
    """20 is not a multiple of the tile: the allocated cache is longer than the table of positions."""
    random_model(n_positions=20).save_pretrained(tmp_path)
    rows = rows_of(read_gpt2(tmp_path), 20)
    rows.start([random_ids(20)])
    with pytest.raises(IndexError, match="holds 20 tokens"):
        rows.step(torch.tensor([1]))


@pytest.mark.parametrize("token", [-1, 300, 2**31 - 1, -(2**31)])
def test_token_outside_the_vocabulary_changes_nothing(gpt2: GPT2, token: int) -> None:
    rows = rows_of(gpt2, 20)
    text = random_ids(5)
    rows.start([text])
    with pytest.raises(IndexError, match="outside the vocabulary of 300"):
        rows.step(torch.tensor([token]))
    with pytest.raises(IndexError, match="outside the vocabulary of 300"):
        rows.extend({0: [3, token]})
    assert torch.equal(rows.step(torch.tensor([9]))[0], read_anew(gpt2, [*text, 9]))
    with pytest.raises(IndexError, match="outside the vocabulary of 300"):
        rows_of(gpt2, 20).start([[4, token]])


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
@pytest.mark.parametrize("name", ["wpe.weight", "h.0.ln_1.weight", "h.1.mlp.c_fc.bias", "ln_f.bias"])
def test_nan_weight_reaches_the_logits(library: kernels.Kernels, name: str, activation: str, tmp_path: Path) -> None:
    random_model(activation_function=activation).save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    weights = read_weights(tmp_path, shape)
    weights[name] = weights[name].clone().index_fill_(-1, torch.tensor([3]), torch.nan)
    model = GPT2(weights, shape, torch.device("cpu"))
    assert rows_of(model, 20).start([random_ids(5)]).isnan().any(dim=1).all()


def test_strides_of_stored_weights_do_not_matter(tmp_path: Path) -> None:
    """A pickle keeps the strides of a tensor, but the kernels assume contiguous norms and biases."""
    random_model().save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    weights = read_weights(tmp_path, shape)
    strided = {name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for name, tensor in weights.items()}
    logits = [read_anew(GPT2(held, shape, torch.device("cpu")), random_ids(9)) for held in (weights, strided)]
    assert torch.equal(*logits)
