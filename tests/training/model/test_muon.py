"""--optim muon: each weight gets the update of torch's own Muon or AdamW."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.arguments import training_arguments
from gpt2tg.training.checks import check_processes
from gpt2tg.training.finetune import finetune
from gpt2tg.training.model.lora import choose_weights
from gpt2tg.training.model.muon import MuonAndAdamW, muon_and_adamw

SETTINGS: dict[str, Any] = dict(learning_rate=1e-2, weight_decay=0.1, betas=(0.9, 0.95), epsilon=1e-8)


def model(**changes: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    shape = dict(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(GPT2Config(**shape, **changes)).eval()


def optimizer_of(network: nn.Module) -> MuonAndAdamW:
    decayed = {name for name, weight in network.named_parameters() if weight.dim() == 2}
    return muon_and_adamw(network, decayed, **SETTINGS)


def backward(network: nn.Module, seed: int) -> None:
    ids = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(seed))
    network.zero_grad()
    network(input_ids=ids, labels=ids).loss.backward()


def test_each_weight_gets_the_update_of_muon_or_adamw() -> None:
    network = model(tie_word_embeddings=False)
    optimizer = optimizer_of(network)
    twins = {name: weight.detach().clone().requires_grad_() for name, weight in network.named_parameters()}
    rate, decay = SETTINGS["learning_rate"], SETTINGS["weight_decay"]
    others = {}
    for name, twin in twins.items():
        if ".h." in name and name.endswith(".weight") and ".ln_" not in name:
            others[name] = torch.optim.Muon([twin], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        else:
            shrinks = decay if twin.dim() == 2 else 0.0
            others[name] = torch.optim.AdamW([twin], lr=rate, weight_decay=shrinks, betas=SETTINGS["betas"], fused=True)
    for seed in range(3):
        backward(network, seed)
        for name, weight in network.named_parameters():
            twins[name].grad = weight.grad.clone()
            others[name].step()
        optimizer.step()
    assert sum(isinstance(other, torch.optim.Muon) for other in others.values()) == 8
    for name, weight in network.named_parameters():
        assert torch.equal(weight, twins[name]), name


def test_loaded_state_continues_exactly() -> None:
    straight = model()
    optimizer = optimizer_of(straight)
    for seed in range(2):
        backward(straight, seed)
        optimizer.step()
    resumed, state = copy.deepcopy(straight), copy.deepcopy(optimizer.state_dict())
    restored = optimizer_of(resumed)
    restored.load_state_dict(state)
    for network, its in ((straight, optimizer), (resumed, restored)):
        backward(network, 2)
        for group in its.param_groups:
            group["lr"] = 3e-3
        its.step()
    assert all(map(torch.equal, straight.parameters(), resumed.parameters()))


def test_step_computes_the_loss_of_a_closure() -> None:
    network = model()
    optimizer = optimizer_of(network)

    def closure() -> float:
        backward(network, 0)
        return 7.0

    before = network.transformer.h[0].mlp.c_fc.weight.clone()
    assert optimizer.step(closure) == 7.0
    assert not torch.equal(before, network.transformer.h[0].mlp.c_fc.weight)


def test_matrices_of_an_adapter_are_trained_by_muon(tmp_path: Path) -> None:
    options = TrainingOptions(train_file="a.txt", output_dir=str(tmp_path), lora=True)
    network = choose_weights(model(), options, "base")
    optimizer = optimizer_of(network)
    assert [type(part) for part in optimizer._parts] == [torch.optim.Muon]
    for seed in range(2):  # the first step leaves the inner matrices alone: the outer ones are zero
        backward(network, seed)
        optimizer.step()
    assert all(torch.isfinite(weight).all() for weight in network.parameters())


def test_frozen_layers_leave_adamw_alone(tmp_path: Path) -> None:
    options = TrainingOptions(train_file="a.txt", output_dir=str(tmp_path), freeze_layers=2)
    network = choose_weights(model(), options, "base")
    assert [type(part) for part in optimizer_of(network)._parts] == [torch.optim.AdamW]


def test_loss_scaler_unscales_and_skips_steps_that_are_not_finite() -> None:
    network = model()
    optimizer = optimizer_of(network)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plain = copy.deepcopy(network)
    other = optimizer_of(plain)
    ids = torch.arange(16)[None]
    scaler.scale(network(input_ids=ids, labels=ids).loss).backward()
    scaler.step(optimizer)
    scaler.update()
    plain(input_ids=ids, labels=ids).loss.backward()
    other.step()
    for weight, twin in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(weight, twin, rtol=1e-3, atol=1e-4)
    before = copy.deepcopy(network)
    network.zero_grad()
    scaler.scale(network(input_ids=ids, labels=ids).loss * float("inf")).backward()
    scaler.step(optimizer)
    assert all(map(torch.equal, before.parameters(), network.parameters()))


def test_checkpoint_holds_the_state_of_both(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    options = TrainingOptions(
        train_file=str(text_file), output_dir=str(tmp_path / "out"), block_size=16, max_steps=2, optim="muon"
    )
    finetune(options, str(model_dir))
    state = torch.load(tmp_path / "out" / "checkpoint-2" / "optimizer.pt", weights_only=True)["state"]
    kinds = {frozenset(moments) for moments in state.values()}
    assert kinds == {frozenset({"momentum_buffer"}), frozenset({"step", "exp_avg", "exp_avg_sq"})}
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert len(state) == len(weights)


def test_old_torch_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    options = TrainingOptions(train_file="a.txt", output_dir=str(tmp_path), optim="muon")
    with pytest.raises(UserError, match=r"optim muon needs torch 2\.9 or newer, this is .*: upgrade torch"):
        training_arguments(options, torch.device("cpu"))


def test_sharded_run_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = TrainingOptions(train_file="a.txt", output_dir=str(tmp_path), optim="muon")
    check_processes(options)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="optim muon needs whole matrices"):
        check_processes(options)
