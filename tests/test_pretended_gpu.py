"""What a GPU would refuse or wait for, found on a machine without one: see pretended_gpu.py.

The first tests plant faults, so that the others can be trusted. A number that a test allows may be lowered when the
code gets better, never raised.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from pretended_gpu import HostSync, PretendedGPU, pretended_gpu
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
from gpt2tg.decoding import filters
from gpt2tg.decoding.pace import Pace
from gpt2tg.decoding.stopping import Endings, StopStrings
from gpt2tg.engine import step_cache, upload
from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.continuous_batch import ContinuousBatch, QueuedText
from gpt2tg.engine.cuda_graph import GraphCapture
from gpt2tg.engine.decode_step import ChooseOnDevice
from gpt2tg.engine.devices import choose_device
from gpt2tg.engine.model import GPT2
from gpt2tg.generation import cuda_steps
from gpt2tg.generation.cuda_steps import choice
from gpt2tg.generation.draft_model import DraftModel
from gpt2tg.generation.filter_chain import distribution_filters
from gpt2tg.generation.generator import Generator, Sample
from gpt2tg.inspection.tokens import inspect_text, next_token
from gpt2tg.options import DecodingOptions, TrainingOptions, decoding_options
from gpt2tg.training.model.build import for_training
from gpt2tg.training.model.lora import choose_weights
from gpt2tg.training.model.loss import LinearCrossEntropy
from gpt2tg.training.totals import LossTotal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="C++ names are other ones there")

# The end-of-text token of the generators here. Every id that comes from the pretended GPU is 0: no text ends early.
END = 5

PROMPTS = ["The owl sold silence", "A fox"]


def options(settings: dict[str, object], new_tokens: int) -> DecodingOptions:
    return decoding_options({"max_new_tokens": new_tokens, **settings})


def new_model(shape: ModelShape, kind: str = "cuda", precision: str = "auto") -> GPT2:
    weights = ((name, torch.empty(size)) for name, size in shape.tensors())
    return GPT2(weights, shape, torch.device(kind), precision)


def new_generator(kind: str = "cuda", precision: str = "auto", **shape_of: int) -> Generator:
    """A model with the shape of the bundled one, but a single layer."""
    shape = replace(read_shape(BUNDLED_DIRECTORY), end_ids=(END,), n_layer=1, **shape_of)
    tokenizer = load_tokenizer(BUNDLED_DIRECTORY, shape.vocab_size, None)
    return Generator(new_model(shape, kind, precision), tokenizer)


def generate(generator: Generator, chosen: DecodingOptions) -> list[Sample]:
    requests = [generator.fit(prompt, chosen, index) for index, prompt in enumerate(PROMPTS)]
    return [sample for samples in generator.generate_each(requests, chosen, 8) for sample in samples]


# ---- planted faults: the pretended GPU notices what a real one would ----

HOST_SYNCS: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "bool": lambda x: bool(x.any()),
    "float": lambda x: float(x[0, 0]),
    "equal": lambda x: torch.equal(x, x),
    "mask as an index": lambda x: x[x > 0],
    "assignment to a mask": lambda x: x.__setitem__(x > 0, 1.0),
    "list as an index": lambda x: x[[0, 1]],
    "index on the host": lambda x: x[torch.tensor([0, 1])],
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "where": lambda x: torch.where(x > 0),
    "to the host": lambda x: x.cpu(),
    "to pageable memory": lambda x: x.to("cpu", non_blocking=True),
    "from the host": lambda x: torch.zeros(2, 3).to(x.device),
    "from pageable memory": lambda x: torch.zeros(2, 3).to(x.device, non_blocking=True),
    "from pinned memory, waiting": lambda x: torch.zeros(2, 3).pin_memory().to(x.device),
    "copy_ from the host": lambda x: x.copy_(torch.zeros(2, 3)),
    "made of numbers": lambda x: torch.tensor([1, 2], device=x.device),
}


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("wait", HOST_SYNCS.values(), ids=HOST_SYNCS)
def test_host_syncs_are_noticed(wait: Callable[[torch.Tensor], object], inference: bool) -> None:
    with pretended_gpu() as gpu, torch.inference_mode(inference):
        x = torch.zeros(2, 3, device="cuda")
        wait(x)
        assert sum(gpu.syncs.values()) >= 1
        gpu.strict = True
        with pytest.raises(HostSync):
            wait(x)


def test_pinned_copies_and_device_indices_are_no_host_sync() -> None:
    with pretended_gpu(strict=True):
        x = torch.zeros(2, 3).pin_memory().to("cuda", non_blocking=True)
        assert x.is_cuda
        torch.empty(2, 3).pin_memory().copy_(x, non_blocking=True)
        x[torch.zeros(2, dtype=torch.int64, device="cuda")] = 1.0
        torch.zeros(3).tolist()


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_mixed_devices_are_refused(kind: str) -> None:
    with pretended_gpu(kind):
        x = torch.zeros(2, 3, device=kind)
        for mix in (lambda: x + torch.zeros(2, 3), lambda: torch.cat([x, torch.zeros(2, 3)])):
            with pytest.raises(RuntimeError, match="same device"):
                mix()
        rows, mask = x[None, None], torch.zeros(2, 2)
        with pytest.raises(AssertionError, match="attention mixes"):
            torch.nn.functional.scaled_dot_product_attention(rows, rows, rows, mask)


def test_choice_that_reads_values_is_named() -> None:
    """Not captured, so that it is found in the first step."""
    with pretended_gpu() as gpu:
        choose = lambda x, _: filters.ban(x, [0], [0]).argmax(dim=1)  # noqa: E731
        batch = ContinuousBatch(new_generator().model, 1, 64, choose, (END,))
        gpu.strict = True
        with pytest.raises(HostSync, match=r"decoding/filters\.py:\d+: a copy"):
            run_batch(batch, 2)


def test_pageable_memory_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "pinned", lambda tensor, device: tensor)
    with pretended_gpu() as gpu:
        generator = new_generator()
        gpu.strict = True
        with pytest.raises(HostSync, match="waits"):
            generate(generator, options({"decoding": "greedy"}, 4))


# ---- the choice of the device ----


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_auto_is_the_gpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPT2TG_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pretended_gpu(kind) as gpu:
        device = choose_device("auto")
        assert device.type == kind
        assert new_generator(kind).model.precision == {"cuda": "fp16", "mps": "fp32"}[kind]
    assert_dtypes_exist(gpu)


# ---- texts in captured steps ----

CAPTURED: dict[str, dict[str, object]] = {
    "greedy": {"decoding": "greedy"},
    "sample": {"decoding": "sample", "seed": 1},
    "all filters": {"decoding": "sample", "seed": 1, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    "typical": {"decoding": "sample", "seed": 1, "typical_p": 0.7},
    "several": {"decoding": "top_p", "seed": 1, "num_sequences": 3},
    "best of": {"decoding": "sample", "seed": 1, "best_of": 4, "num_sequences": 2},
}


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 steps, and small buckets, so that short texts are captured and change buckets."""
    monkeypatch.setattr(cuda_steps, "ContinuousBatch", partial(ContinuousBatch, steps=4))
    monkeypatch.setattr(step_cache, "SMALLEST_BUCKET", 16)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("settings", CAPTURED.values(), ids=CAPTURED)
@pytest.mark.usefixtures("short_chunks")
def test_captured_texts_wait_for_nothing(settings: dict[str, object], precision: str) -> None:
    """Neither prompts nor places nor random numbers nor captures nor replays: only the event of a chunk is waited for,
    which is no host sync of torch."""
    with pretended_gpu() as gpu:
        generator = new_generator(precision=precision)
        gpu.strict = True
        samples = generate(generator, options(settings, 30))
    assert {len(sample.ids) for sample in samples} == {30}
    assert gpu.graphs[0] == "capture"
    assert gpu.graphs.count("replay") >= 16


@pytest.mark.usefixtures("short_chunks")
def test_texts_of_all_lengths_share_a_graph_with_our_attention() -> None:
    with pretended_gpu(triton=True) as gpu:
        generator = new_generator()
        gpu.strict = True
        generate(generator, options({"decoding": "sample", "seed": 1}, 60))
    assert gpu.graphs.count("capture") == 1
    assert gpu.graphs.count("replay") >= 50


@pytest.mark.usefixtures("short_chunks")
def test_captured_texts_attend_with_few_shapes() -> None:
    """A library that prepares a plan for each shape prepares few: for the prompts, and for each bucket."""
    with pretended_gpu() as gpu:
        generate(new_generator(), options({"decoding": "greedy"}, 30))
    assert len({call.shapes for call in gpu.attention}) <= 4


# ---- the kernels of a step ----

# Each kernel takes about 2.5 microseconds on a large GPU, and a step of one row hardly anything else.
# By whether our attention kernel is used: without it, a mask is made for all layers.
MOST_KERNELS_OF_A_LAYER = {False: 12, True: 11}
MOST_OTHER_KERNELS = {"greedy": 26, "all filters": 39, "typical": 51}
KERNELS_OF_THE_MASK = 3


def run_batch(batch: ContinuousBatch, new_tokens: int) -> None:
    finish = Endings((END,), StopStrings((), lambda *_: ""), [new_tokens])
    for _ in batch.write([QueuedText(0, (1, 2, 3), new_tokens, lambda: 0.5)], finish):
        pass


def kernels_of_a_step(choose: ChooseOnDevice, layers: int = 1, triton: bool = False) -> int:
    """The kernels that one more token of a model with the width of gpt2 launches."""
    shape = ModelShape(50257, 1024, 768, layers, 12, 3072, "gelu_new", 1e-5, True, False, True, (END,))
    with pretended_gpu(triton=triton) as gpu:
        capture = GraphCapture(torch.device("cuda"), is_on=False)
        batch = ContinuousBatch(new_model(shape), 1, 64, choose, (END,), capture=capture)
        counts: list[int] = []
        run_batch(batch, 2)  # allocates what the step needs
        for new_tokens in (3, 4):
            gpu.kernels.clear()
            gpu.attention.clear()
            run_batch(batch, new_tokens)
            counts.append(sum(gpu.kernels.values()) + len(gpu.attention))
    return counts[1] - counts[0]


def choice_of(name: str) -> ChooseOnDevice:
    chosen = options(CAPTURED[name], 4)
    return choice(distribution_filters(chosen, 1), chosen.strategy.samples)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("name", MOST_OTHER_KERNELS)
def test_step_launches_no_more_kernels_than_before(name: str, triton: bool) -> None:
    of_one_layer, of_two = (kernels_of_a_step(choice_of(name), layers, triton) for layers in (1, 2))
    assert of_two - of_one_layer <= MOST_KERNELS_OF_A_LAYER[triton]
    assert of_one_layer - (of_two - of_one_layer) <= MOST_OTHER_KERNELS[name] - triton * KERNELS_OF_THE_MASK


def test_each_additional_kernel_is_counted() -> None:
    greedy = choice_of("greedy")
    assert kernels_of_a_step(lambda x, uniform: greedy(x * 1, uniform)) == kernels_of_a_step(greedy) + 1


# ---- texts whose tokens are chosen step by step ----

# Settings, and the most host syncs of two texts with six new tokens each.
STEP_BY_STEP: dict[str, tuple[dict[str, object], int]] = {
    "repetition": ({"decoding": "greedy", "repetition_penalty": 1.2}, 64),
    "presence": ({"decoding": "greedy", "presence_penalty": 0.5}, 64),
    "n-grams": ({"decoding": "greedy", "no_repeat_ngram": 3}, 52),
    "too early": ({"decoding": "greedy", "min_new_tokens": 4}, 48),
    "banned": ({"decoding": "greedy", "ban_words": ("owl",)}, 41),
    "lookup": ({"decoding": "greedy", "prompt_lookup": 5}, 40),
    "beam": ({"decoding": "beam"}, 93),
    "beam_sample": ({"decoding": "beam_sample", "seed": 1}, 105),
    "diverse_beam": ({"decoding": "diverse_beam"}, 502),
    "contrastive": ({"decoding": "contrastive"}, 77),
}


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize(("settings", "most"), STEP_BY_STEP.values(), ids=STEP_BY_STEP)
def test_step_by_step_texts_stay_on_one_device(settings: dict[str, object], most: int, kind: str) -> None:
    with pretended_gpu(kind) as gpu:
        generator = new_generator(kind)
        gpu.syncs.clear()
        samples = generate(generator, options(settings, 6))
    assert {len(sample.ids) for sample in samples} == {6}
    assert sum(gpu.syncs.values()) <= most, gpu.syncs
    assert_dtypes_exist(gpu)


def test_all_graphs_share_a_memory_pool_that_stays() -> None:
    """When more rows are needed, all graphs of the context go. torch can neither use nor free a pool without graphs."""
    with pretended_gpu() as gpu:
        model = new_generator().model
        context = new_context(model, 60)
        context.start([[1, 2], [3]])
        for rows in ([0, 1], [0, 1, 1]):
            context.select(rows)
            for _ in range(4):
                context.step(torch.tensor([1] * len(rows)))
        assert gpu.graphs.count("capture") == 2
        assert model.graph_capture.is_on
        assert len(gpu.pools) == 1


# Of a text of 48 tokens with guesses of 4.
MOST_SYNCS_WITH_A_DRAFT = {"greedy": 238, "top_p": 323}


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("decoding", MOST_SYNCS_WITH_A_DRAFT)
def test_guesses_of_a_draft_are_made_and_verified_in_graphs(
    decoding: str, triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token that comes from the pretended GPU is 0, so all guesses are right. Within a graph, a host sync raises
    an error."""
    monkeypatch.setattr(Pace, "next_length", lambda *_: 4)
    with pretended_gpu(triton=triton) as gpu:
        generator = new_generator()
        generator.draft = DraftModel(new_model(generator.model.shape), generator.model)
        gpu.syncs.clear()
        (sample,) = generator.generate(PROMPTS[0], options({"decoding": decoding, "seed": 1, "num_sequences": 1}, 48))
    assert len(sample.ids) == 48
    assert generator.model.graph_capture.is_on
    assert generator.draft.model.graph_capture.is_on
    assert gpu.graphs.count("replay") >= 35
    assert sum(gpu.syncs.values()) <= MOST_SYNCS_WITH_A_DRAFT[decoding], gpu.syncs


# Lookup reads a varying number of tokens at once.
OF_GRAPHS = [*((name, False) for name in STEP_BY_STEP if name != "lookup"), ("beam", True), ("contrastive", True)]


@pytest.mark.parametrize(("name", "triton"), OF_GRAPHS)
def test_forward_pass_of_every_strategy_is_captured(name: str, triton: bool) -> None:
    """Within a graph, a host sync raises an error."""
    with pretended_gpu(triton=triton) as gpu:
        samples = generate(new_generator(), options(STEP_BY_STEP[name][0], 12))
    assert {len(sample.ids) for sample in samples} == {12}
    assert gpu.graphs.count("capture") == 1
    assert gpu.graphs.count("replay") >= 8


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_texts_beyond_the_context_stay_on_one_device(kind: str) -> None:
    with pretended_gpu(kind) as gpu:
        samples = generate(
            new_generator(kind, n_positions=16), options({"decoding": "greedy", "overflow": "slide"}, 20)
        )
    assert {len(sample.ids) for sample in samples} == {20}
    assert_dtypes_exist(gpu)


@pytest.mark.parametrize("settings", CAPTURED.values(), ids=CAPTURED)
def test_texts_stay_on_the_gpu_of_a_mac(settings: dict[str, object]) -> None:
    """Where nothing is captured."""
    with pretended_gpu("mps") as gpu:
        samples = generate(new_generator("mps"), options(settings, 6))
    assert {len(sample.ids) for sample in samples} == {6}
    assert_dtypes_exist(gpu)


def assert_dtypes_exist(gpu: PretendedGPU) -> None:
    """MPS has no float64."""
    assert gpu.kind == "cuda" or torch.float64 not in gpu.dtypes


def test_float64_on_mps_is_noticed() -> None:
    with pretended_gpu("mps") as gpu:
        torch.zeros(2, device="mps").double()
        with pytest.raises(AssertionError):
            assert_dtypes_exist(gpu)


# ---- probabilities of given texts ----


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_probabilities_are_computed_on_one_device(kind: str) -> None:
    with pretended_gpu(kind) as gpu:
        generator = new_generator(kind)
        assert len(inspect_text(generator, PROMPTS[0], 3)) > 2
        assert next_token(generator, PROMPTS[1], 4).candidates
    assert_dtypes_exist(gpu)


def test_logits_of_a_long_text_are_never_held_at_once() -> None:
    """For 1,024 tokens and the vocabulary of gpt2, each array of their shape would take 206 MB."""
    with pretended_gpu() as gpu:
        generator = new_generator(vocab_size=50257)
        gpu.largest = 0
        tokens = len(inspect_text(generator, "The owl sold silence. " * 200))
    assert tokens > 500
    assert 0 < gpu.largest <= 64 * (generator.model.shape.vocab_size + 64)  # the vocabulary may be padded


# ---- training ----

TRAINED: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"half": torch.float16},
    "bf16": {"half": torch.bfloat16},
    "mask": {"half": torch.float16, "mask": True},
    "checkpointing": {"half": torch.float16, "checkpointing": True},
    "lora": {"half": torch.float16, "lora": True},
}


class OneProcess:
    """An accelerator."""

    device = torch.device("cuda")


def model_in_training(half: torch.dtype | None, lora: bool, checkpointing: bool) -> torch.nn.Module:
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=64, use_cache=False)
    model: Any = for_training(GPT2LMHeadModel(config))
    if lora:
        asked = TrainingOptions(train_file="-", lora=True, fp16=half == torch.float16, bf16=half == torch.bfloat16)
        model = choose_weights(model, asked, "-")
    if checkpointing:
        newer = getattr(model, "activation_checkpointing_enable", None)  # transformers 5.17 has only the other name
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return model.train()


def move(model: torch.nn.Module) -> None:
    """Replace all weights by ones on the GPU. Tied weights stay tied."""
    moved: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                empty = torch.empty(weight.shape, dtype=weight.dtype, device="cuda")
                fresh = torch.nn.Parameter(empty, requires_grad=weight.requires_grad)
                module._parameters[name] = moved.setdefault(id(weight), fresh)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")


def training_loss(model: torch.nn.Module, half: torch.dtype | None, with_mask: bool) -> torch.Tensor:
    ids = torch.zeros(4, 64, dtype=torch.long, device="cuda")
    others = {}
    if with_mask:
        mask = torch.ones(4, 1, 64, 64, dtype=torch.bool, device="cuda")
        others = {"attention_mask": mask, "position_ids": torch.zeros_like(ids)}
    count = torch.ones((), dtype=torch.long, device="cuda")
    torch.set_autocast_enabled("cuda", half is not None)
    torch.set_autocast_dtype("cuda", half or torch.float16)
    try:
        return model(input_ids=ids, labels=ids.clone(), num_items_in_batch=count, **others).loss
    finally:
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("case", TRAINED.values(), ids=TRAINED)
def test_training_step_waits_for_nothing(case: dict[str, Any]) -> None:
    """The forward pass, in which our loss computes its gradients, their way back, and the sum of the losses."""
    half, lora, with_mask = case.get("half"), case.get("lora", False), case.get("mask", False)
    model = model_in_training(half, lora, case.get("checkpointing", False))
    with pretended_gpu() as gpu:
        move(model)
        losses = LossTotal(OneProcess())  # type: ignore[arg-type]
        gpu.strict = True
        loss = training_loss(model, half, with_mask)
        losses.add(loss.detach(), 1)
        assert (loss.dtype, loss.device.type) == (torch.float32, "cuda")
        assert {call.dtype for call in gpu.attention} == {half or torch.float32}
        assert {call.is_causal for call in gpu.attention} == {not with_mask}  # a mask is slower
        node = loss.grad_fn.next_functions[0][0]
        to_hidden, to_weight, *_ = LinearCrossEntropy.backward(node, torch.ones((), device="cuda"))
    assert (to_hidden.dtype, to_hidden.device.type) == (torch.float32, "cuda")
    if lora:
        assert to_weight is None
    else:
        assert (to_weight.dtype, tuple(to_weight.shape)) == (torch.float32, (50257, 32))


def test_training_step_that_reads_its_loss_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_in_training(None, False, False)
    add = LossTotal.add
    monkeypatch.setattr(LossTotal, "add", lambda self, loss, step: add(self, loss, step) if loss > 0 else None)
    with pretended_gpu() as gpu:
        move(model)
        losses = LossTotal(OneProcess())  # type: ignore[arg-type]
        gpu.strict = True
        with pytest.raises(HostSync, match="reads a value"):
            losses.add(training_loss(model, None, False).detach(), 1)
