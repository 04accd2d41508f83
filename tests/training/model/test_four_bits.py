"""Weights in 4 bits (QLoRA). bitsandbytes is pretended: a layer that holds its weights in full."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import random_model

from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training import checks
from gpt2tg.training.model.four_bits import check_4bit, quantize

IDS = torch.tensor([[5, 80, 7, 33, 12, 250, 3]])
OPTIONS = TrainingOptions(train_file="a.txt", lora=True, load_in_4bit=True)


class Linear4bit(torch.nn.Linear):
    """(out, in), as that of bitsandbytes."""

    def __init__(self, inputs: int, outputs: int, device: str, **settings: object) -> None:
        super().__init__(inputs, outputs, device=device)
        self.settings = settings


class Params4bit(torch.nn.Parameter):
    def __new__(cls, data: torch.Tensor, requires_grad: bool, **_: object) -> Params4bit:
        return super().__new__(cls, data, requires_grad)


def test_all_linear_layers_are_quantised(monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = SimpleNamespace(nn=SimpleNamespace(Linear4bit=Linear4bit, Params4bit=Params4bit))
    monkeypatch.setitem(sys.modules, "bitsandbytes", pretended)
    model = random_model()
    with torch.no_grad():
        expected = model(IDS).logits
        quantize(model, torch.device("cpu"), torch.float32)
        torch.testing.assert_close(model(IDS).logits, expected)
    layers = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    assert len(layers) == 4 * model.config.n_layer
    assert {layer.settings["quant_type"] for layer in layers} == {"nf4"}
    assert not any(weight.requires_grad for layer in layers for weight in layer.parameters())


def test_missing_package_and_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        check_4bit(OPTIONS, torch.device("cuda"))
    monkeypatch.setattr(checks, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="needs a CUDA GPU, and this run is on cpu"):
        check_4bit(OPTIONS, torch.device("cpu"))
    check_4bit(OPTIONS, torch.device("cuda"))


def test_4_bits_need_an_adapter() -> None:
    with pytest.raises(UserError, match="needs --lora"):
        TrainingOptions(train_file="a.txt", load_in_4bit=True)
