"""The Muon optimizer for the matrices of the layers, and AdamW for all other weights, in one optimizer.

Muon (https://kellerjordan.github.io/posts/muon/) makes the update of a matrix orthogonal. It learns more per step than
AdamW. Embeddings, norms and biases are no such matrices. The update is scaled to AdamW's usual size
(https://arxiv.org/abs/2502.16982), so that both take the same learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW as one optimizer: one state, one list of parameter groups, one step."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        """Set up the optimizer.

        Args:
            parts: the optimizers to combine. They share their groups and their state with this one.
        """
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over groups and state: torch calls this when it loads them."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Give the parts the groups and the state of this optimizer. Each part keeps the number of its groups."""
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state, first = self.param_groups[first:last], self.state, last

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights. A closure computes the loss first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def muon_and_adamw(
    model: nn.Module,
    decayed: Collection[str],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
) -> MuonAndAdamW:
    """Return the optimizer of --optim muon for the weights that are trained.

    Args:
        decayed: the names of the weights that AdamW decays. Muon decays all of its matrices.
        betas, epsilon: of AdamW.
    """
    matrices: list[Tensor] = []
    others: dict[bool, list[Tensor]] = {True: [], False: []}  # by whether they decay
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            (matrices if is_layer_matrix(name, weight) else others[name in decayed]).append(weight)
    parts = list[torch.optim.Optimizer]()
    if matrices:
        muon = torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        parts.append(muon)
    groups = [
        {"params": weights, "weight_decay": weight_decay if decays else 0.0}
        for decays, weights in others.items()
        if weights
    ]
    if groups:
        parts.append(torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True))
    return MuonAndAdamW(parts)


def is_layer_matrix(name: str, weight: Tensor) -> bool:
    """Whether Muon updates this weight: a matrix of a layer, or of its adapter."""
    return ".h." in name and weight.dim() == 2
