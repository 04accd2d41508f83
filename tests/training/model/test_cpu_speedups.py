"""GELU, dropout, attention and memory settings for training on a CPU."""

from __future__ import annotations

import pytest
import torch
from conftest import kernels_here, random_model
from torch import Tensor
from torch.nn import functional as F

from gpt2tg.training.model import cpu_speedups
from gpt2tg.training.model.build import for_training
from gpt2tg.training.model.cpu_speedups import GELU, CausalAttention, Dropout, attention, dropped, keep_freed_memory


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_has_the_right_rate_and_scale(share: float) -> None:
    torch.manual_seed(3)
    count = 1_000_001  # no multiple of the numbers that one draw decides on
    found = dropped(torch.full((count,), 2.0), share)
    kept = found != 0
    deviation = (share * (1 - share) / count) ** 0.5
    assert (~kept).double().mean() == pytest.approx(share, abs=5 * deviation + 2**-16)
    assert found[kept].unique().tolist() == pytest.approx([2 / (1 - share)], rel=1e-3)
    for lane in range(4):  # each of the four that share a draw, and each pair of neighbours
        assert (~kept[lane::4]).double().mean() == pytest.approx(share, abs=10 * deviation + 2**-16)
    both = (~kept[:-1] & ~kept[1:]).double().mean()
    assert both == pytest.approx(share**2, abs=10 * deviation)


def test_dropout_draws_from_the_state_of_torch() -> None:
    torch.manual_seed(5)
    first, state = dropped(torch.ones(50), 0.5), torch.get_rng_state()
    second = dropped(torch.ones(50), 0.5)
    torch.set_rng_state(state)
    assert torch.equal(dropped(torch.ones(50), 0.5), second)
    assert not torch.equal(first, second)


def test_dropped_elements_get_no_gradient() -> None:
    x = torch.randn(400, requires_grad=True)
    found = dropped(x, 0.3)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(gradient * x, found)


def test_nothing_is_dropped_in_evaluation_mode() -> None:
    x = torch.ones(100)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)
    model = random_model().eval()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = model(ids).logits
        torch.testing.assert_close(for_training(model)(ids).logits, expected)
    assert not any(part.training for part in model.modules())
    assert all(part.training for part in for_training(random_model().train()).modules())


@pytest.mark.parametrize("size", [(1,), (16,), (3, 33), (2, 9, 512)], ids=str)
def test_gelu_and_its_gradient_match_fp64(size: tuple[int, ...]) -> None:
    """For sizes that do and do not fill vector registers, and for far values, where it is 0 or x."""
    kernels_here()
    x, gradient = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    x = (5 * x.flatten().index_fill(0, torch.tensor([0]), -40.0)).view(size).requires_grad_()
    exact = x.detach().double().requires_grad_()
    expected, found = F.gelu(exact, approximate="tanh"), GELU()(x)
    assert isinstance(found.grad_fn, cpu_speedups.GELUWithSlope._backward_cls)
    near = dict(rtol=1e-5, atol=1e-6, check_dtype=False)
    torch.testing.assert_close(found, expected, **near)
    (mine,), (theirs,) = (torch.autograd.grad(y, z, gradient.to(z.dtype)) for y, z in ((found, x), (expected, exact)))
    torch.testing.assert_close(mine, theirs, **near)


def test_gelu_is_bit_equal_for_any_thread_count() -> None:
    kernels_here()
    x = torch.randn(7, 1001, requires_grad=True)
    made = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found = GELU()(x)
            made.append((found, *torch.autograd.grad(found.sum(), x)))
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(mine, first) for each in made for mine, first in zip(each, made[0], strict=True))


def test_gelu_handles_strided_input_and_nan() -> None:
    kernels_here()
    x = torch.randn(30, 40)
    x[3, 4], x[5, 6] = torch.nan, torch.inf
    for part in (x.t(), x[:, ::2]):
        part = part.detach().requires_grad_()
        torch.testing.assert_close(GELU()(part), F.gelu(part, approximate="tanh"), equal_nan=True)


def test_gelu_saves_no_slope_without_gradients() -> None:
    x = torch.randn(40)
    assert GELU()(x).grad_fn is None
    with torch.no_grad():
        assert torch.equal(GELU()(x.requires_grad_()), F.gelu(x, approximate="tanh"))


def test_gelu_falls_back_to_torch_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_speedups.kernels, "load", lambda: None)
    x = torch.randn(40, requires_grad=True)
    assert torch.equal(GELU()(x), F.gelu(x, approximate="tanh"))
    assert torch.equal(GELU()(x.bfloat16()), F.gelu(x.bfloat16(), approximate="tanh"))


@pytest.mark.parametrize("size", [(1,), (3, 33), (2, 65_537)], ids=str)
def test_gelu_in_bf16_is_as_exact_as_torch(size: tuple[int, ...]) -> None:
    """For sizes below and above the number of elements that are converted at a time."""
    kernels_here()
    x, gradient = (3 * torch.randn(2, *size, generator=torch.Generator().manual_seed(1))).bfloat16()
    x = x.requires_grad_()
    exact = x.detach().double().requires_grad_()
    expected, found = F.gelu(exact, approximate="tanh"), GELU()(x)
    assert isinstance(found.grad_fn, cpu_speedups.GELUWithSlope._backward_cls)
    assert found.dtype == torch.bfloat16
    near = dict(rtol=2**-7, atol=1e-3, check_dtype=False)
    torch.testing.assert_close(found, expected, **near)
    (mine,), (theirs,) = (torch.autograd.grad(y, z, gradient.to(z.dtype)) for y, z in ((found, x), (expected, exact)))
    torch.testing.assert_close(mine, theirs, **near)


@pytest.mark.parametrize("dropout", [0, 0.5])
@pytest.mark.parametrize("mask", [None, "two texts"])
def test_compiled_model_has_the_same_loss_and_gradients(dropout: float, mask: str | None) -> None:
    """Covers what torch.compile does before code generation. With dropout, the loss depends only on the seed."""
    shares = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), dropout)
    plain, compiled = (for_training(random_model(n_layer=1, **shares).train()) for _ in range(2))
    compiled.transformer.compile(backend="aot_eager")
    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    seen = None if mask is None else documents_apart(9).expand(2, -1, -1, -1)
    losses = []
    for model in (plain, compiled, compiled):
        torch.manual_seed(2)
        model.zero_grad()
        loss = model(ids, labels=ids, attention_mask=seen).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == losses[2]
    if not dropout:
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        for mine, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def documents_apart(length: int) -> Tensor:
    """Return the mask of two texts in a block: each token attends only to its own text, up to itself."""
    text = torch.arange(length) >= length // 2
    return ((text[:, None] == text[None]) & torch.ones(length, length, dtype=torch.bool).tril())[None, None]


@pytest.mark.parametrize("mask", [None, documents_apart(9)], ids=["causal", "two texts"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_attention_without_dropping_matches_torch(
    monkeypatch: pytest.MonkeyPatch, mask: Tensor | None, kind: torch.dtype
) -> None:
    monkeypatch.setattr(cpu_speedups, "dropped", lambda weights, share: weights)
    query, key, value = (torch.randn(2, 4, 9, 8, dtype=kind).requires_grad_() for _ in range(3))
    found, _ = attention(torch.nn.Module(), query, key, value, mask, dropout=0.1, scaling=0.3)
    expected = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=0.3
    ).transpose(1, 2)
    near = dict(rtol=1e-4, atol=1e-5) if kind == torch.float32 else dict(rtol=0.05, atol=0.05)
    torch.testing.assert_close(found, expected, **near)
    for mine, theirs in zip(
        torch.autograd.grad(found.sum(), (query, key, value)),
        torch.autograd.grad(expected.sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, **near)


@pytest.mark.parametrize("mask", [None, documents_apart(9)], ids=["causal", "two texts"])
@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_gradients_of_attention_with_dropout_are_its_slopes(
    monkeypatch: pytest.MonkeyPatch, mask: Tensor | None, dropout: float
) -> None:
    """Against finite differences in fp64, with several chunks of queries; the same weights are dropped in each call."""
    monkeypatch.setattr(cpu_speedups, "QUERY_CHUNK", 4)
    torch.manual_seed(1)
    inputs = [torch.randn(2, 2, 9, 3, dtype=torch.float64).requires_grad_() for _ in range(3)]

    def output(*inputs: Tensor) -> Tensor:
        torch.manual_seed(2)
        return attention(torch.nn.Module(), *inputs, mask, dropout=dropout)[0]

    assert torch.autograd.gradcheck(output, inputs)


def test_gradients_of_attention_with_dropout_in_bf16_match_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of matrices so large that oneDNN multiplies them, in several chunks; the same weights are dropped in both."""
    torch.manual_seed(1)
    kept = torch.rand(300, 300) > 0.1
    monkeypatch.setattr(
        cpu_speedups, "dropped", lambda x, share: x * kept[-x.shape[1] :, : x.shape[2]].to(x.dtype) / (1 - share)
    )
    query, key, value, gradient = torch.randn(4, 2, 3, 300, 64).bfloat16()
    found, expected = [], []
    for results, kind in ((found, torch.bfloat16), (expected, torch.float64)):
        inputs = [x.to(kind).requires_grad_() for x in (query, key, value)]
        output = attention(torch.nn.Module(), *inputs, None, dropout=0.1)[0].transpose(1, 2)
        results += [output, *torch.autograd.grad(output, inputs, gradient.to(kind))]
    for mine, true in zip(found, expected, strict=True):
        assert (mine.double() - true).norm() < 0.02 * true.norm()


def test_attention_drops_whole_weights() -> None:
    """With values that are the unit vectors, the output holds the weights: those of softmax, scaled up, or zero."""
    torch.manual_seed(1)
    query, key = torch.randn(2, 1, 1, 40, 40)
    value = torch.eye(40)[None, None]
    found = attention(torch.nn.Module(), query, key, value, None, dropout=0.25)[0][0, :, 0]
    weights = F.scaled_dot_product_attention(query, key, value, is_causal=True)[0, 0]
    seen = torch.ones(40, 40, dtype=torch.bool).tril()
    kept = found != 0
    torch.testing.assert_close(found[kept], weights[kept] / 0.75, rtol=1e-4, atol=1e-6)
    assert not kept[~seen].any()
    assert kept[seen].double().mean() == pytest.approx(0.75, abs=0.08)


@pytest.mark.parametrize("length", [1, 4, 9, 12])
@pytest.mark.parametrize("apart", [False, True], ids=["causal", "two texts"])
def test_causal_attention_in_bf16_is_as_exact_as_torch(
    monkeypatch: pytest.MonkeyPatch, length: int, apart: bool
) -> None:
    """For lengths that do and do not fill the chunks of queries, against fp64: errors of the size of torch's own."""
    monkeypatch.setattr(cpu_speedups, "QUERY_CHUNK", 4)
    torch.manual_seed(1)
    query, key, value = (torch.randn(2, 3, length, 16).bfloat16().requires_grad_() for _ in range(3))
    gradient = torch.randn(2, length, 3, 16).bfloat16()
    mask = documents_apart(length)

    def with_gradients(output: Tensor, *inputs: Tensor) -> list[Tensor]:
        return [output, *torch.autograd.grad(output, inputs, gradient.to(output.dtype))]

    module = torch.nn.Module()
    found = with_gradients(attention(module, query, key, value, mask if apart else None)[0], query, key, value)
    assert isinstance(found[0].grad_fn.next_functions[0][0].next_functions[0][0], CausalAttention._backward_cls)
    exact = [x.detach().double().requires_grad_() for x in (query, key, value)]
    seen = {"attn_mask": mask} if apart else {"is_causal": True}
    expected = with_gradients(F.scaled_dot_product_attention(*exact, **seen).transpose(1, 2), *exact)
    plain = F.scaled_dot_product_attention(query, key, value, **seen).transpose(1, 2)
    for mine, torchs, true in zip(found, with_gradients(plain, query, key, value), expected, strict=True):
        error, usual = ((x.double() - true).norm() for x in (mine, torchs))
        assert error <= 2 * usual + 2**-8 * true.norm()


def test_causal_attention_in_bf16_is_for_training_alone() -> None:
    query = torch.randn(1, 2, 5, 8).bfloat16()
    found, _ = attention(torch.nn.Module(), query, query, query, None)
    assert torch.equal(found, F.scaled_dot_product_attention(query, query, query, is_causal=True).transpose(1, 2))


def test_attention_scales_by_the_head_width_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_speedups, "dropped", lambda weights, share: weights)
    query, key, value = (torch.randn(2, 4, 9, 8) for _ in range(3))
    found, _ = attention(torch.nn.Module(), query, key, value, None, dropout=0.1)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_loss_with_dropout_depends_only_on_the_seed() -> None:
    """Dropout changes the loss, and depends only on the seed."""
    model = for_training(random_model(attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5).train())
    ids = torch.arange(8)[None]

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return model(ids, labels=ids).loss.item()

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


@pytest.mark.parametrize("most", [2**31 - 1, 2**25], ids=["new glibc", "old glibc"])
def test_glibc_is_set_to_keep_freed_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Whether it helps depends on the layout of the heap, so the test checks the calls (constants of malloc.h)."""
    m_trim_threshold, m_mmap_threshold = -1, -3
    taken: dict[int, int] = {}

    class Libc:
        def mallopt(self, setting: int, value: int) -> int:
            if setting == m_mmap_threshold and value > most:
                return 0
            taken[setting] = value
            return 1

    monkeypatch.setattr(cpu_speedups.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(cpu_speedups.ctypes, "CDLL", lambda name: Libc())
    keep_freed_memory()
    assert taken == {m_trim_threshold: 2**31 - 1, m_mmap_threshold: most}
    taken.clear()
    monkeypatch.setattr(cpu_speedups.platform, "libc_ver", lambda: ("", ""))  # macOS, Windows, musl
    keep_freed_memory()
    assert not taken
