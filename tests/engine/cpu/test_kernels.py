"""The compiled kernels against torch: products in 64 bits, texts read anew, the same library made for AVX2."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import has_avx2, kernels_here, random_ids, random_model, read_gpt2
from torch import Tensor

from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.weights import read_weights
from gpt2tg.engine.cpu import context, kernels
from gpt2tg.engine.cpu.context import KernelContext
from gpt2tg.engine.cpu.huge_pages import HugePages
from gpt2tg.engine.matrices import Panels, round_to_int8
from gpt2tg.engine.model import GPT2, Attended, Context
from gpt2tg.generation.generator import load

pytestmark = pytest.mark.usefixtures("there_are_kernels")

PRECISIONS = ["fp32", "fp16", "int8"]


@pytest.fixture(scope="module")
def there_are_kernels() -> None:
    """Kernels that do not compile where they should are a failure, and no reason to skip."""
    kernels_here()


def compiled_for(processor: str, directory: Path) -> kernels.Kernels:
    """The kernels as an older processor would have them."""
    flags = [f"-march={processor}" if flag == "-march=native" else flag for flag in kernels.FLAGS]
    compiler = next(filter(None, map(shutil.which, kernels.COMPILERS)))
    path = directory / "kernels.so"
    torchs = kernels.threads_of_torch()
    subprocess.run([compiler, *flags, str(kernels.SOURCE), "-o", str(path), *torchs, "-lm"], check=True)
    return kernels.Kernels(ctypes.CDLL(str(path)))


@pytest.fixture(scope="module", params=["here", "avx2"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> kernels.Kernels:
    """The kernels for this processor, and for one without the widest registers."""
    of_this_processor = kernels_here()  # without a compiler there are none for another one either
    if request.param == "here":
        return of_this_processor
    if not has_avx2():
        pytest.skip("the processor has no AVX2")
    made = compiled_for("haswell", tmp_path_factory.mktemp("avx2"))
    assert made.lanes == 8
    return made


@pytest.fixture
def library(made: kernels.Kernels, monkeypatch: pytest.MonkeyPatch) -> kernels.Kernels:
    """Each of them, as what models are made with."""
    monkeypatch.setattr(kernels, "load", lambda: made)
    return made


def random_matrix(inputs: int, outputs: int, seed: int = 0) -> Tensor:
    return torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(seed))


def as_held(weight: Tensor, precision: str) -> Tensor:
    """The weights after rounding, in 64 bits."""
    if precision == "int8":
        scale = weight.abs().amax(0).double() / 127
        return (weight.double() / scale).round() * scale
    return (weight.half() if precision == "fp16" else weight).double()


def in_panels(weight: Tensor, panel: int) -> Tensor:
    """(K, N) -> (panels, K, panel), by torch."""
    filled_up = torch.nn.functional.pad(weight, (0, -weight.shape[1] % panel))
    return filled_up.unflatten(1, (-1, panel)).transpose(0, 1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("is_by_token", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (5, 16), (37, 45), (16, 32), (33, 3001)])
def test_weights_are_laid_out_as_torch_would_to_the_bit(
    library: kernels.Kernels, inputs: int, outputs: int, stored: torch.dtype, is_by_token: bool, precision: str
) -> None:
    weight = (random_matrix(inputs, outputs) * 10.0 ** random_matrix(1, outputs, seed=1)).to(stored)
    weight[:, outputs // 2] = 0  # an output without any weight
    laid_out = Panels(weight.t().contiguous().t() if is_by_token else weight, precision, library, HugePages())
    if precision == "int8":
        scale, weight = round_to_int8(weight)
        assert torch.equal(laid_out.scale, scale)
    weight = weight.to(laid_out.panels.dtype)
    assert torch.equal(laid_out.panels, in_panels(weight, library.panel))


def test_weights_that_lie_neither_by_input_nor_by_output(library: kernels.Kernels) -> None:
    weight = random_matrix(40, 90)[::2, ::3]
    laid_out = Panels(weight, "fp32", library, HugePages())
    assert torch.equal(laid_out.panels, in_panels(weight, library.panel))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(1, 1), (12, 36), (20, 7), (33, 32), (36, 108), (64, 31), (127, 65), (768, 50)]
)
def test_products_equal_those_in_64_bits(library: kernels.Kernels, precision: str, inputs: int, outputs: int) -> None:
    weight, bias = random_matrix(inputs, outputs), random_matrix(1, outputs, seed=1)[0]
    matrix = Panels(weight, precision, library, HugePages())
    for with_bias in (False, True):
        matrix.bias = bias if with_bias else None
        for items in (1, 2, 5, 6, 7, 8, 9, 13, 20):
            x = random_matrix(items, inputs, seed=items)
            expected = x.double() @ as_held(weight, precision) + (bias if with_bias else 0)
            rounding = 1e-6 * (x.abs().double() @ as_held(weight, precision).abs() + 3)
            assert ((matrix(x) - expected).abs() <= rounding).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_columns_are_the_weights_as_they_are_held(library: kernels.Kernels, precision: str) -> None:
    weight = random_matrix(20, 45)
    ids = torch.tensor([[0, 44, 31], [32, 15, 16]])
    columns = Panels(weight, precision, library, HugePages()).columns(ids)
    torch.testing.assert_close(columns.double(), as_held(weight, precision).t()[ids], rtol=1e-6, atol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_product_does_not_depend_on_its_neighbours(library: kernels.Kernels, precision: str) -> None:
    matrix = Panels(random_matrix(345, 75), precision, library, HugePages())
    x = random_matrix(600, 345, seed=1)
    alone = torch.cat([matrix(item[None]) for item in x])
    for items in (*range(1, 21), 64, 255, 257, 600):
        assert torch.equal(matrix(x[:items]), alone[:items])


def test_a_column_of_zeros_stays_zero_in_8_bits(library: kernels.Kernels) -> None:
    weight = random_matrix(20, 40)
    weight[:, 3] = 0
    scale, rounded = round_to_int8(weight)
    assert scale.isfinite().all()
    assert rounded.abs().max() == 127
    assert Panels(weight, "int8", library, HugePages())(torch.ones(2, 20))[:, 3].tolist() == [0, 0]


def read_in(directory: Path, precision: str) -> GPT2:
    shape = read_shape(directory)
    return GPT2(read_weights(directory, shape), shape, torch.device("cpu"), precision)


def rows_of(model: GPT2, capacity: int, keep_hidden: bool = False) -> KernelContext:
    rows = model.context(capacity, keep_hidden)
    assert isinstance(rows, KernelContext)
    return rows


def read_anew(model: GPT2, text: list[int]) -> Tensor:
    """(V,) logits after a text that is read from its beginning, by the kernels."""
    return rows_of(model, len(text)).start([text])[0]


def all_by_torch(model: GPT2, text: list[int]) -> Tensor:
    """(T, V) logits after each token of a text, by torch; keys and values rounded as the kernels hold them."""

    def held(layer: int, key: Tensor, value: Tensor) -> Attended:
        if model.precision != "fp32":
            key, value = key.half().float(), value.half().float()
        return key, value, None, True

    with torch.inference_mode():
        return model.logits(model.hidden(torch.tensor([text]), torch.arange(len(text))[None], held)[0])


def allowed(model: GPT2) -> float:
    """How far logits may be apart, as a share of the largest. A key that lies between two numbers of 16 bits may be
    rounded to either."""
    return 1e-5 if model.precision == "fp32" else 5e-4


def random_orders(model: GPT2, seed: int, orders: int) -> None:
    """Random orders to a context; after each, every row's logits are those of its text read anew, to the last bit."""
    chance = random.Random(seed)
    vocabulary, capacity = model.shape.vocab_size, 40

    def ids(count: int) -> list[int]:
        return [chance.randrange(vocabulary) for _ in range(count)]

    texts = [ids(chance.randint(1, 15)) for _ in range(chance.randint(1, 4))]
    rows = rows_of(model, capacity)
    logits = rows.start(texts)
    for _ in range(orders):
        for row, text in enumerate(texts):
            assert torch.equal(logits[row], read_anew(model, text))
        longest = max(map(len, texts))
        order = chance.choice(["step", "step", "select", "permute", "read", "extend", "start"])
        if order == "select":
            chosen = [chance.randrange(len(texts)) for _ in range(chance.randint(1, 6))]
        elif order == "permute":
            chosen = chance.sample(range(len(texts)), len(texts))
        if order in ("select", "permute"):
            rows.select(chosen)
            texts = [list(texts[row]) for row in chosen]
            logits = logits[chosen]
        if order == "step" and longest < capacity:
            tokens = ids(len(texts))
            logits = rows.step(torch.tensor(tokens))
            texts = [[*text, token] for text, token in zip(texts, tokens, strict=True)]
        if order == "read":
            anew = {row: ids(chance.randint(1, 20)) for row in range(len(texts)) if chance.random() < 0.5}
            if anew:
                logits = logits.clone()
                logits[list(anew)] = rows.read(anew)
                texts = [anew.get(row, text) for row, text in enumerate(texts)]
        if order == "extend" and len(texts) == 1 and longest < capacity - 6:
            more = ids(5)
            all_logits = rows.extend(more)
            assert all(torch.equal(all_logits[n], read_anew(model, [*texts[0], *more[: n + 1]])) for n in range(5))
            back = chance.randint(0, 4)
            rows.take_back(back)
            texts, logits = [[*texts[0], *more[: 5 - back]]], all_logits[[4 - back]]
        if order == "start":
            source = chance.choice(texts)
            texts = [[*source[: chance.randint(0, len(source))], *ids(2)][:capacity]]
            logits = rows.start(texts)
        assert rows.lengths == [len(text) for text in texts]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("seed", range(6))
def test_rows_are_their_texts_whatever_happened_to_them(
    library: kernels.Kernels, model_dir: Path, precision: str, seed: int
) -> None:
    random_orders(read_in(model_dir, precision), seed, orders=40)


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
def test_kernels_compute_what_torch_computes(
    library: kernels.Kernels, config: dict, precision: str, tmp_path: Path
) -> None:
    """On the very same weights, as they are held: rows of unequal length read, stepped and extended."""
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
    logits, whole = rows.extend(more), all_by_torch(model, [*texts[2], *more])[-6:]
    assert float((logits - whole).abs().max()) <= allowed(model) * float(whole.abs().max())


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_with_rounded_weights_keys_and_values_are_held_in_16_bits(
    library: kernels.Kernels, model_dir: Path, precision: str
) -> None:
    """What the kernels compute is nearer to torch with them rounded than to torch without."""
    model, text = read_in(model_dir, precision), random_ids(30, 3)
    logits = torch.cat([(rows := rows_of(model, 30)).start([text[:1]]), rows.extend(text[1:])])
    rounded, exact = all_by_torch(model, text), next(model.all_logits(text))
    assert 10 * float((logits - rounded).abs().median()) < float((logits - exact).abs().median())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_keys_and_values_too_large_for_16_bits_are_held_as_the_largest(
    library: kernels.Kernels, precision: str, tmp_path: Path
) -> None:
    """Two keys of such a size are alike, and the values of all tokens: the model goes on with numbers."""
    model = random_model(n_positions=40)
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.bias[32:] = 1e6  # of keys and values
    model.save_pretrained(tmp_path)
    text = random_ids(9, 1)
    logits = rows_of(read_in(tmp_path, precision), 40).start([text])
    assert logits.isfinite().all()


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_bit(library: kernels.Kernels, model_dir: Path, threads: int) -> None:
    model = read_gpt2(model_dir)
    texts = [random_ids(length, length) for length in (20, 3)]
    alone = rows_of(model, 30).start(texts)
    torch.set_num_threads(threads)
    try:
        together = rows_of(model, 30).start(texts)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(alone, together)


@pytest.mark.parametrize("piece", [1, 3, 7])
def test_long_texts_are_read_in_pieces_and_no_bit_differs(
    gpt2: GPT2, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    texts = [random_ids(length, seed=length) for length in (20, 1, 9, 6)]

    def read() -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        rows = rows_of(gpt2, 40, keep_hidden=True)
        started, hidden = rows.start(texts), rows.hidden()
        stepped = rows.step(torch.tensor([5, 6, 7, 8]))
        rows.select([0])
        return started, stepped, rows.extend([9, 10, 11, 12, 13]), hidden

    whole = read()
    monkeypatch.setattr(context, "PIECE", piece)
    in_pieces = read()
    assert all(torch.equal(a, b) for a, b in zip(whole[:3], in_pieces[:3], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[3], in_pieces[3], strict=True))


@pytest.mark.parametrize(
    ("head", "precision"),
    [(8, "fp32"), (16, "fp32"), (20, "fp32"), (32, "fp16"), (64, "fp32"), (64, "int8"), (80, "fp16")],
)
def test_a_long_text_read_at_once_or_token_by_token_gives_the_same_bits(
    library: kernels.Kernels, tmp_path: Path, head: int, precision: str
) -> None:
    """More tokens than a panel meets in one go, in groups that attend together and one by one."""
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
        assert torch.equal(at_once.extend(following), torch.cat(stepped))


def test_final_states_are_kept_where_they_are_asked_for(library: kernels.Kernels, model_dir: Path) -> None:
    model = read_gpt2(model_dir)
    ours, torchs = rows_of(model, 20, keep_hidden=True), Context(model, 20, keep_hidden=True)
    texts = [random_ids(9, 1), random_ids(4, 2)]
    for rows in (ours, torchs):
        rows.start(texts)
    for act in (lambda rows: None, lambda rows: rows.step(torch.tensor([5, 6]))):
        for rows in (ours, torchs):
            act(rows)
        assert [tuple(states.shape) for states in ours.hidden()] == [tuple(states.shape) for states in torchs.hidden()]
        for mine, theirs in zip(ours.hidden(), torchs.hidden(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def forgetting_nothing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each call of the kernels reads, noted as it happens."""
    read: list[int] = []
    original = KernelContext._read

    def counted(self: KernelContext, texts: dict, logits_of_all: bool) -> Tensor:
        read.append(sum(map(len, texts.values())))
        return original(self, texts, logits_of_all)

    monkeypatch.setattr(KernelContext, "_read", counted)
    return read


@pytest.mark.parametrize("begin", ["as the first row", "as the second row", "as nothing before"])
def test_a_prompt_is_read_from_where_it_parts_from_a_text_that_is_held(
    gpt2: GPT2, monkeypatch: pytest.MonkeyPatch, begin: str
) -> None:
    texts = [random_ids(12, 1), random_ids(12, 2)]
    rows = rows_of(gpt2, 30)
    rows.start(texts)
    source = {"as the first row": texts[0][:10], "as the second row": texts[1][:12], "as nothing before": [299]}[begin]
    prompt = [*source, 7, 8, 9]
    expected = read_anew(gpt2, prompt)
    read = forgetting_nothing(monkeypatch)
    assert torch.equal(rows.start([prompt])[0], expected)
    assert sum(read) == (4 if begin == "as nothing before" else 3)
    assert torch.equal(rows.start([prompt])[0], expected)
    assert read[-1] == 1, "of a text that is held whole, the last token is read again for its logits"


ACTS: dict[str, Callable[[KernelContext], object]] = {
    "step": lambda rows: rows.step(torch.tensor([1])),
    "extend": lambda rows: rows.extend([1, 2]),
    "start": lambda rows: rows.start([random_ids(21)]),
    "read": lambda rows: rows.read({0: random_ids(21)}),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_beyond_the_capacity_nothing_is_read(gpt2: GPT2, act: Callable[[KernelContext], object]) -> None:
    """20 tokens fit; the cache itself is a little wider, and the model has 64 positions."""
    rows = rows_of(gpt2, 20)
    rows.start([random_ids(20)])
    with pytest.raises(IndexError, match="holds 20 tokens"):
        act(rows)


def test_beyond_the_last_position_nothing_is_read(tmp_path: Path) -> None:
    """20 positions are no multiple of a register's width: the cache is wider than the table of positions."""
    random_model(n_positions=20).save_pretrained(tmp_path)
    rows = rows_of(read_gpt2(tmp_path), 20)
    rows.start([random_ids(20)])
    with pytest.raises(IndexError, match="holds 20 tokens"):
        rows.step(torch.tensor([1]))


@pytest.mark.parametrize("token", [-1, 300, 2**31 - 1, -(2**31)])
def test_a_token_outside_the_vocabulary_is_refused_and_changes_nothing(gpt2: GPT2, token: int) -> None:
    rows = rows_of(gpt2, 20)
    text = random_ids(5)
    rows.start([text])
    with pytest.raises(IndexError, match="outside the vocabulary of 300"):
        rows.step(torch.tensor([token]))
    with pytest.raises(IndexError, match="outside the vocabulary of 300"):
        rows.extend([3, token])
    assert torch.equal(rows.step(torch.tensor([9]))[0], read_anew(gpt2, [*text, 9]))
    with pytest.raises(IndexError, match="outside the vocabulary of 300"):
        rows_of(gpt2, 20).start([[4, token]])


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
@pytest.mark.parametrize("name", ["wpe.weight", "h.0.ln_1.weight", "h.1.mlp.c_fc.bias", "ln_f.bias"])
def test_what_is_no_number_reaches_the_logits(
    library: kernels.Kernels, name: str, activation: str, tmp_path: Path
) -> None:
    random_model(activation_function=activation).save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    weights = read_weights(tmp_path, shape)
    weights[name] = weights[name].clone().index_fill_(-1, torch.tensor([3]), torch.nan)
    model = GPT2(weights, shape, torch.device("cpu"))
    assert rows_of(model, 20).start([random_ids(5)]).isnan().any(dim=1).all()


def test_weights_that_lie_askew_in_their_file_are_read_as_they_are_meant(tmp_path: Path) -> None:
    """A pickle keeps the strides of a tensor; the kernels are told where it begins and no more."""
    random_model().save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    weights = read_weights(tmp_path, shape)
    askew = {name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for name, tensor in weights.items()}
    logits = [read_anew(GPT2(held, shape, torch.device("cpu")), random_ids(9)) for held in (weights, askew)]
    assert torch.equal(*logits)


def test_a_model_that_nobody_holds_is_forgotten(model_dir: Path) -> None:
    model = read_gpt2(model_dir)
    rows_of(model, 20).start([[1, 2]])
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None


# Without them


def in_a_process_of_its_own(environment: dict[str, str], model_dir: Path) -> str:
    """The ids of a greedy text, and after them whether kernels wrote it."""
    code = f"""
from gpt2tg.engine.cpu import kernels
from gpt2tg.generation.generator import load
from gpt2tg.options import decoding_options
(sample,) = load({str(model_dir)!r}).generate("The fox", decoding_options(dict(decoding="greedy", max_new_tokens=20)))
print(*sample.ids, "by", "torch" if kernels.load() is None else "kernels")
"""
    given = {name: value for name, value in os.environ.items() if name != kernels.SWITCH}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**given, "PYTHONPATH": str(Path(__file__).parents[3]), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_without_a_compiler_torch_writes_the_same_text(model_dir: Path, tmp_path: Path) -> None:
    from gpt2tg.options import decoding_options

    (sample,) = load(str(model_dir)).generate("The fox", decoding_options(dict(decoding="greedy", max_new_tokens=20)))
    told = in_a_process_of_its_own({"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}, model_dir)
    assert told == " ".join(map(str, sample.ids)) + " by torch"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty place for compiled kernels, which are looked for anew; without optimising, as they compute nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    kernels.load.cache_clear()
    with pytest.MonkeyPatch.context() as hasty:
        hasty.setattr(kernels, "FLAGS", ("-O0", *(flag for flag in kernels.FLAGS if flag != "-O3")))
        yield tmp_path
    kernels.load.cache_clear()


def test_the_switch_turns_them_off(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.SWITCH, "0")
    assert kernels.load() is None
    assert list(fresh.iterdir()) == []


def test_they_are_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.load() is not None
    assert [path.suffix for path in (fresh / "gpt2tg").iterdir()] == [".so"]
    monkeypatch.setattr(kernels, "_compile", lambda *_: pytest.fail("compiled again"))
    kernels.load.cache_clear()
    assert kernels.load() is not None


@pytest.mark.parametrize("content", [b"", b"no library", b"\x7fELF" + bytes(200)])
def test_a_broken_library_is_compiled_anew(fresh: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    library = kernels.cache_directory() / f"kernels-{kernels.fingerprint()}.so"
    library.write_bytes(content)
    monkeypatch.setattr(kernels, "COMPILERS", ())
    assert kernels.load() is None
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh))
    kernels.load.cache_clear()
    assert kernels.load() is not None


def test_a_compiler_that_fails_leaves_nothing_behind(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "--no-such-flag"))
    assert kernels.load() is None
    assert list((fresh / "gpt2tg").iterdir()) == []


def test_a_place_that_cannot_be_written_is_done_without(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "file").write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "file"))
    assert kernels.load() is None


def test_a_user_without_a_home_does_without(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert kernels.load() is None
