"""Decide whether torch.compile is used, find what prevents it here, and do without it where it fails."""

from __future__ import annotations

import contextlib
import os
import sys
from contextlib import AbstractContextManager

import torch

from gpt2tg.engine.compilers import find_obstacle
from gpt2tg.errors import UserError, one_line
from gpt2tg.options import TrainingOptions
from gpt2tg.training.console import log

# torch.compile takes about a minute for a model as deep as GPT-2, and then saves some tens of milliseconds a pass.
PASSES_TO_REPAY_COMPILING = 2000


def is_compiled(options: TrainingOptions, device: torch.device, steps: int) -> bool:
    """Whether to compile the model: "auto" does so on a CUDA GPU if that works and the run is long enough to repay it.

    One line is logged if "auto" would compile, but something prevents it.
    """
    if options.compile != "auto":
        return options.compile == "on"
    passes = steps * options.gradient_accumulation_steps
    if device.type != "cuda" or os.name == "nt" or passes < PASSES_TO_REPAY_COMPILING:
        return False
    if obstacle := find_obstacle(device):
        log.info(f"the model is not compiled, which would be faster: {obstacle}")
    return obstacle is None


def check_compiling(options: TrainingOptions, device: torch.device) -> None:
    """Check that `--compile on` is possible.

    Raises:
        UserError: it is not.
    """
    if options.compile == "on" and (obstacle := find_obstacle(device)):
        raise UserError(f"on is not possible here: {obstacle}: leave the flag out", "compile")


def is_compile_error(error: BaseException) -> bool:
    """Whether torch.compile failed: all errors of its backends and of Triton arrive as one of TorchDynamo's."""
    return "torch._dynamo" in sys.modules and isinstance(error, torch._dynamo.exc.TorchDynamoException)


def cause_of(error: BaseException) -> str:
    """Return why torch.compile failed, in one line: the error of its backend, if it is one."""
    return one_line(getattr(error, "inner_exception", error))


def forget_compiled() -> None:
    """Free the compiled functions of earlier models; they hold memory, and count against a limit of compilations."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def uncompiled() -> AbstractContextManager[object]:
    """Return a context in which compiled models run uncompiled, and nothing is compiled."""
    if "torch._dynamo" not in sys.modules:  # importing it takes seconds, and nothing was compiled
        return contextlib.nullcontext()
    eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return eager
