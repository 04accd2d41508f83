"""Choose which weights are trained: all of them, the upper layers, or a low-rank adapter (LoRA, Hu et al. 2021)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import GPT2LMHeadModel

from gpt2tg.checkpoint.lora_weights import with_magnitude
from gpt2tg.options import BUNDLED_MODEL, TrainingOptions
from gpt2tg.training.checks import check_layers
from gpt2tg.training.model.four_bits import dequantized, is_quantized, quantize

CPU = torch.device("cpu")


def choose_weights(
    model: GPT2LMHeadModel,
    options: TrainingOptions,
    base: str,
    device: torch.device = CPU,
    new_tokens: Sequence[int] = (),
) -> GPT2LMHeadModel | PeftModel:
    """Freeze the weights that are not trained, and add the adapter if there is one.

    With `lora` the whole model is frozen, and kept in 16 bits if it computes in 16 bits: nothing updates it. With
    `load_in_4bit` its linear layers are quantised. The adapter stays in fp32.

    With `freeze_layers` the lowest layers and the embeddings are frozen, and with them the output layer if it is tied
    to the embeddings.

    Args:
        base: the name or path under which the adapter will find its base model.
        device: where the model will be trained.
        new_tokens: ids whose embeddings an adapter trains as well, since the model has none for them yet.

    Raises:
        UserError: `freeze_layers` is more than the model has.
    """
    check_layers(options, model.config.n_layer)
    if options.freeze_layers:
        _freeze(model, options.freeze_layers)
    return _with_adapter(model, options, base, device, new_tokens) if options.lora else model


def _freeze(model: GPT2LMHeadModel, layers: int) -> None:
    for part in (model.transformer.wte, model.transformer.wpe, *model.transformer.h[:layers]):
        part.requires_grad_(False)


def _with_adapter(
    model: GPT2LMHeadModel, options: TrainingOptions, base: str, device: torch.device, new_tokens: Sequence[int]
) -> PeftModel:
    kind = torch.bfloat16 if options.bf16 else torch.float16 if options.fp16 else torch.float32
    model.to(kind)  # type: ignore[arg-type]  # transformers' wrapper of `to` has the wrong signature
    if options.load_in_4bit:
        quantize(model, device, kind)
    model.name_or_path = base
    settings = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,  # type: ignore[arg-type]  # peft divides it by the rank: fractions work
        lora_dropout=options.lora_dropout,
        target_modules=list(options.adapted_layers),
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        fan_in_fan_out=not options.load_in_4bit,
        # Their rows alone: the whole embedding would be as large as a third of gpt2, in each adapter.
        trainable_token_indices=_rows_to_train(model, new_tokens),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    with warnings.catch_warnings():  # peft uses a deprecated name of transformers
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(model, settings)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # peft leaves rows of tokens in the type of the embedding
    adapted.loss_type = model.loss_type  # type: ignore[assignment]  # nn.Module allows any attribute
    # By default every save asks the hub whether the vocabulary was resized.
    save = partial(adapted.save_pretrained, save_embedding_layers=False)
    adapted.save_pretrained = save  # type: ignore[method-assign]  # of this instance alone
    return adapted


def _rows_to_train(model: GPT2LMHeadModel, tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """Return the rows of new tokens in the embedding, and in the head if it has weights of its own."""
    layers = ("wte",) if model.config.tie_word_embeddings else ("wte", "lm_head")
    return {layer: list(tokens) for layer in layers} if tokens else None


def plain_weights(model: GPT2LMHeadModel | PeftModel) -> dict[str, Tensor]:
    """Return the weights under plain names like `h.0.attn.c_attn.weight`, with the adapter merged in if there is one.

    With an adapter, the weights are copies in fp32.
    """
    if not isinstance(model, PeftModel):
        return {name.removeprefix("transformer."): weight.detach() for name, weight in model.state_dict().items()}
    network: Any = model.get_base_model()
    weights: dict[str, Tensor] = {}
    for name, weight in network.state_dict().items():
        if name.endswith((".weight", ".bias")) and "lora_" not in name:
            weights[_plain(name)] = weight.detach().float()
    for layer_name, embedding in (("wte", network.transformer.wte), ("lm_head", network.lm_head)):
        weights[f"{layer_name}.weight"] = embedding.weight.detach().float()  # with the rows of new tokens
    layers = list(network.named_modules())
    for name, layer in layers:
        if is_quantized(layer):
            weights[_plain(f"{name}.weight")] = dequantized(layer)
    for name, layer in layers:
        if isinstance(layer, LoraLayer):
            key = _plain(f"{name}.weight")
            weights[key] = _merged(layer, weights[key])
    return weights


def _plain(name: str) -> str:
    return name.removeprefix("transformer.").replace(".token_adapter", "").replace(".base_layer.", ".")


def _merged(layer: Any, weight: Tensor) -> Tensor:
    """Return the weight (in, out) of a layer with its adapter."""
    update: Tensor = layer.get_delta_weight("default").detach().float()
    merged = weight + (update if layer.fan_in_fan_out else update.T)
    if "default" not in layer.lora_magnitude_vector:
        return merged
    return with_magnitude(merged, layer.lora_magnitude_vector["default"].weight.detach().float(), by_output=False)


def base_reference(model_name: str, directory: Path) -> str:
    """Return how an adapter refers to its base model: the name on the hub, or the absolute path on this machine."""
    given = Path(model_name).expanduser()
    return str(directory.resolve()) if model_name != BUNDLED_MODEL and given.exists() else model_name
