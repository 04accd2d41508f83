"""The memory estimate_memory, compared with torch's profiler on a real training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.options import TrainingOptions
from gpt2tg.training.model import cpu_speedups, loss
from gpt2tg.training.model.build import for_training
from gpt2tg.training.model.lora import choose_weights
from gpt2tg.training.model.memory_estimate import KeptAttention, estimate_memory, out_of_memory, remedies
from gpt2tg.training.model.muon import muon_and_adamw
from gpt2tg.training.report import emulates_bf16

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def shape(n_layer: int, n_embd: int, n_head: int, vocab_size: int = 50257, n_positions: int = 1024) -> ModelShape:
    return ModelShape(
        vocab_size, n_positions, n_embd, n_layer, n_head, 4 * n_embd, "gelu_new", 1e-5, True, False, True, (0,)
    )


GPT2, GPT2_XL = shape(12, 768, 12), shape(48, 1600, 25)
SMALL = shape(3, 128, 4, 2000, 128)


def measured_peak(of: ModelShape, options: TrainingOptions, wrap: Callable[..., torch.nn.Module] | None = None) -> int:
    """Return the peak bytes of a later step, weights and optimizer state included.

    Args:
        wrap: wraps the model in DDP, which keeps buffers of all gradients.
    """
    config = GPT2Config(
        vocab_size=of.vocab_size, n_positions=of.n_positions, n_embd=of.n_embd, n_layer=of.n_layer, n_head=of.n_head,
        resid_pdrop=options.dropout, embd_pdrop=options.dropout, attn_pdrop=options.dropout, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = for_training(GPT2LMHeadModel(config)).train()
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    new_tokens = range(of.vocab_size - len(options.add_tokens), of.vocab_size)
    model = choose_weights(model, options, "base", new_tokens=new_tokens)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if wrap is not None:
        model = wrap(model)
    optimizer = torch.optim.AdamW(trained, fused=True)
    if options.optim == "muon":
        optimizer = muon_and_adamw(model, (), learning_rate=1e-3, weight_decay=0, betas=(0.9, 0.9), epsilon=1e-8)
    ids = torch.randint(0, of.vocab_size, (options.batch_size, options.block_size))

    def step() -> None:
        for _ in range(options.gradient_accumulation_steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                found = model(input_ids=ids, labels=ids, num_items_in_batch=torch.tensor(ids.numel())).loss
            found.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    if wrap is not None:
        step()  # the buffers are laid out anew in the second
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    held = sum(weight.nbytes for weight in model.parameters())
    held += sum(weight.nbytes for weight in trained) if wrap is not None else 0
    held += sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    running = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        running += event.nbytes()
        most = max(most, running)
    return held + most


@pytest.mark.parametrize("rows", [256, 64], ids=["one piece", "four pieces"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dropout": 0.1},
        {"bf16": True},
        {"bf16": True, "block_size": 96},
        {"gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "bf16": True, "dropout": 0.1},
        {"gradient_checkpointing": True, "bf16": True, "lora": True},
        {"freeze_layers": 2},
        {"optim": "muon"},
    ],
    ids=str,
)
def test_estimate_matches_the_measured_peak(settings: dict, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "ROWS", rows)
    for name, size in {"GELU_CHUNK": 2**12, "QUERY_CHUNK": 32}.items():  # the buffers of large ones are not counted
        monkeypatch.setattr(cpu_speedups, name, size)
    options = TrainingOptions(**{"batch_size": 2, "block_size": 128, "dropout": 0.0, **settings})
    found = estimate_memory(SMALL, options, "chunks" if options.dropout or options.bf16 else "none").peak
    # Without instructions for bf16, torch multiplies with other buffers.
    tolerance = 0.05 if options.bf16 and emulates_bf16() else 0.03
    assert found == pytest.approx(measured_peak(SMALL, options), rel=tolerance)


@pytest.mark.parametrize("block_size", [64, 512])
@pytest.mark.parametrize("bf16", [False, True])
def test_whole_attention_matrices_are_counted(bf16: bool, block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own attention with dropout keeps them; they are most of the memory with long blocks and many heads."""
    monkeypatch.setattr(cpu_speedups, "_is_eager_on_cpu", lambda x: False)
    of = shape(3, 128, 8, 500)
    options = TrainingOptions(batch_size=2, block_size=block_size, dropout=0.1, bf16=bf16)
    assert estimate_memory(of, options, "whole").peak == pytest.approx(measured_peak(of, options), rel=0.06)


@pytest.mark.parametrize("attention", ["none", "chunks"])
def test_dropout_of_the_model_itself_is_counted(attention: KeptAttention) -> None:
    """Without --dropout it is that of the model's config, usually 0.1."""
    found, stated, none = (
        estimate_memory(SMALL, TrainingOptions(dropout=dropout), attention).peak for dropout in (None, 0.1, 0.0)
    )
    assert found == stated > none


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gradients_of_ddp_are_counted_once(tmp_path: Path) -> None:
    """Gradients are views of DDP's buffers, as the trainer requests; otherwise each process would hold them twice."""
    options = TrainingOptions(batch_size=1, block_size=32, dropout=0.0)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        measured = measured_peak(SMALL, options, partial(DistributedDataParallel, gradient_as_bucket_view=True))
    finally:
        dist.destroy_process_group()
    # One by one they are there twice for a moment, until they are copied into their buffer.
    assert estimate_memory(SMALL, options, processes=2).peak == pytest.approx(measured, rel=0.08)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"use_dora": True, "lora_targets": ("all-linear",)},
        {"add_tokens": ("<|user|>", "<|bot|>"), "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_estimate_with_an_adapter_is_not_too_low(settings: dict) -> None:
    """A frozen layer saves a little less than a trained one, which the estimate leaves out."""
    options = TrainingOptions(batch_size=2, block_size=128, dropout=0.0, lora=True, **settings)
    assert 0.99 < estimate_memory(SMALL, options).peak / measured_peak(SMALL, options) < 1.25


def test_gpt2_xl_with_an_adapter_fits_in_8_gb() -> None:
    options = TrainingOptions(
        lora=True, bf16=True, gradient_checkpointing=True, block_size=1024, batch_size=1, gradient_accumulation_steps=8
    )
    assert 3.1e9 < estimate_memory(GPT2_XL, options).peak < 5e9
    assert estimate_memory(GPT2_XL, replace(options, batch_size=3)).peak < 7.5e9


def test_weights_in_4_bits_take_an_eighth() -> None:
    """As in the QLoRA paper: 4.127 bits for each weight of the layers; the embeddings stay in 16 bits."""
    options = TrainingOptions(lora=True, bf16=True, load_in_4bit=True)
    adapter = 48 * 4 * (1600 * 8 + 8 * 4800)
    expected = 48 * 12 * 1600**2 * 4.127 / 8 + 2 * 1600 * (50257 + 1024)
    assert estimate_memory(GPT2_XL, options).weights - adapter == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"bf16": True}], ids=str)
def test_all_of_gpt2_fits_in_8_gb(settings: dict) -> None:
    options = TrainingOptions(block_size=1024, batch_size=4, **settings)
    assert 2e9 < estimate_memory(GPT2, options).peak < 7.5e9


def test_remedies_are_the_most_effective_first() -> None:
    options = TrainingOptions(block_size=1024, batch_size=8)
    now = estimate_memory(GPT2, options).peak
    peaks = [memory.peak for _, memory in remedies(GPT2, options)]
    assert peaks == sorted(peaks)
    assert peaks[-1] < now
    names = [flags.split()[0] for flags, _ in remedies(GPT2, options)]
    assert {"--batch_size", "--gradient_checkpointing", "--bf16", "--lora", "--block_size"} <= set(names)


def test_out_of_memory_message_has_numbers_and_flags() -> None:
    options = TrainingOptions(block_size=1024, batch_size=8, gradient_accumulation_steps=2)
    message = out_of_memory(GPT2, options, 8e9, attention="none")
    assert "the device has 8.0 GB" in message
    assert "--batch_size 1 --gradient_accumulation_steps 16" in message
    assert "weights 0.5 GB" in message
    assert "--auto_batch_size finds" in message
    assert "other processes" not in message
    message = out_of_memory(GPT2, options, 8e9, attention="none", taken=7.5e9)
    assert "the device has 8.0 GB, of which other processes use 7.5 GB; most effective" in message
    assert "--auto_batch_size" not in out_of_memory(GPT2, replace(options, auto_batch_size=True), None, "none")


def test_out_of_memory_message_without_remedies() -> None:
    options = TrainingOptions(
        batch_size=1, block_size=64, gradient_checkpointing=True, bf16=True, lora=True, optim="sgd"
    )
    assert "take a smaller model" in out_of_memory(GPT2, options, None, attention="none")
