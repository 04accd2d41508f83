"""Running totals of loss and tokens, kept on the device so that no step waits for a host sync."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from gpt2tg.training.failures import NotFinite


class LossTotal:
    """The sum of the losses since the last log entry, and the first step whose loss was not finite.

    Each checkpoint stores it, so that a resumed run logs what the uninterrupted one would have logged.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._total = torch.zeros((), device=accelerator.device)
        self._bad_step = torch.full((), -1, device=accelerator.device)
        self._logged_step = 0

    @property
    def logged_step(self) -> int:
        """The step of the last log entry."""
        return self._logged_step

    def add(self, loss: Tensor, step: int) -> None:
        """Add the loss of a forward pass, already divided by the accumulation steps."""
        self._total += loss
        self._bad_step = torch.where((self._bad_step < 0) & ~torch.isfinite(loss), step, self._bad_step)

    def take_mean(self, step: int) -> float:
        """Return the mean loss per step since the last call, over all processes, and start a new sum."""
        total: float = self._accelerator.gather(self._total).mean().item()
        mean = total / max(step - self._logged_step, 1)
        self._total.zero_()
        self._logged_step = step
        return mean

    def check_finite(self) -> None:
        """Raise NotFinite if a loss was not finite in any process."""
        if (step := int(self._accelerator.gather(self._bad_step).max().item())) >= 0:
            raise NotFinite("loss", step)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores: the sum of each process, and the step of the last log entry."""
        sums = self._accelerator.gather(self._total).reshape(-1).tolist()
        return {"loss_sums": sums, "logged_step": self._logged_step}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what a checkpoint stores."""
        self._total.fill_(state["loss_sums"][self._accelerator.process_index % len(state["loss_sums"])])
        self._logged_step = int(state["logged_step"])


class TokenTotal:
    """The number of tokens trained on so far, without padding."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._of_this_process = torch.zeros((), dtype=torch.int64, device=accelerator.device)

    def add(self, tokens: Tensor) -> None:
        """Add the tokens of a batch."""
        self._of_this_process += tokens.to(self._of_this_process.device)

    def total(self) -> int:
        """Return the total over all processes, which must call this together."""
        return int(self._accelerator.gather(self._of_this_process).sum().item())

    def restore(self, total: int) -> None:
        """Continue from a total."""
        self._of_this_process.fill_(total if self._accelerator.is_main_process else 0)
