"""The context that a model gets: our kernels', torch's, or torch's with CUDA graphs."""

from __future__ import annotations

from gpt2tg.engine.captured_context import CapturedContext
from gpt2tg.engine.context import Context
from gpt2tg.engine.cpu.kernel_context import KernelContext
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.torch_context import TorchContext


def new_context(model: GPT2, capacity: int, keep_hidden: bool = False) -> Context:
    """Return an empty KV cache for rows of up to `capacity` tokens.

    Args:
        keep_hidden: whether `Context.hidden` will be called.

    Raises:
        ValueError: the capacity exceeds the model's context length.
    """
    if model.kernel_model is not None:
        return KernelContext(model, model.kernel_model, capacity, keep_hidden)
    kind = CapturedContext if model.graph_capture.is_on else TorchContext
    return kind(model, capacity, keep_hidden)


def has_reusable_context(model: GPT2) -> bool:
    """Whether the next text gains from the context of the last one: our kernels read only from where the texts differ,
    and captured graphs stay."""
    return model.kernel_model is not None or model.graph_capture.is_on
