"""Hold frozen weights in 4 bits while an adapter is trained: QLoRA (Dettmers et al. 2023), by bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.integrations import dequantize_bnb_weight
from torch import Tensor
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.checks import check_packages


def check_4bit(options: TrainingOptions, device: torch.device) -> None:
    """Check that this machine can train with weights in 4 bits, if the options ask for it.

    Raises:
        UserError: bitsandbytes is not installed, or the run is not on a CUDA GPU.
    """
    if not options.load_in_4bit:
        return
    check_packages(options)
    if device.type != "cuda":
        raise UserError(f"needs a CUDA GPU, and this run is on {device.type}: leave the flag out", "load_in_4bit")


def quantize(model: GPT2LMHeadModel, device: torch.device, compute_type: torch.dtype) -> None:
    """Replace the linear layers of a model by those of bitsandbytes with weights in 4 bits, in place.

    As in the paper, the type is NF4, and the scales of its blocks are quantised too. Embeddings, norms and biases stay.

    Args:
        device: where the weights are quantised, and stay.
        compute_type: the type to which weights are converted for a product.
    """
    import bitsandbytes

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Conv1D)]
    for name, layer in layers:
        inputs, outputs = layer.weight.shape
        linear = bitsandbytes.nn.Linear4bit(
            inputs, outputs, compute_dtype=compute_type, compress_statistics=True, quant_type="nf4", device="meta"
        )
        weight = layer.weight.detach().T.contiguous()  # (out, in)
        linear.weight = bitsandbytes.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=linear
        )
        linear.bias = torch.nn.Parameter(layer.bias.detach(), requires_grad=False)
        model.set_submodule(name, linear.to(device))
    mark: Any = model
    mark.is_loaded_in_4bit = True  # peft chooses its layers by this


def is_quantized(layer: torch.nn.Module) -> bool:
    """Whether a layer holds its weights in 4 bits."""
    return type(getattr(layer, "weight", None)).__name__ == "Params4bit"


def dequantized(layer: Any) -> Tensor:
    """Return the weights (in, out) of a quantised layer in fp32."""
    weight: Tensor = dequantize_bnb_weight(layer.weight).detach().float()
    return weight.T
