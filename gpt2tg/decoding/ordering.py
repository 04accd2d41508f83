"""Which numbers are the largest, the highest, the lowest: what decoders ask of a whole vocabulary, in the time that
they can spare. On a processor numpy asks its vector units where it has code for them, and then answers in a tenth of
the time that torch takes. The numbers are of 32 or 64 bits, and none of them is NaN."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def argmax(numbers: Tensor) -> Tensor:
    """Where the largest of each row stands; the first of several. (B, V) -> (B,)"""
    return torch.from_numpy(np.argmax(numbers.detach().numpy(), axis=1)) if numbers.is_cpu else numbers.argmax(dim=1)


def highest(numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest of all rows together, the very highest first, as far as there are so many. (K, V) -> (count,) each

    They are among the highest of each row, which are found much sooner than those of all rows at once.

    Returns:
        The numbers, and where they stand in the flattened rows.
    """
    of_rows, columns = numbers.topk(min(count, numbers.shape[1]), dim=1)
    found, places = of_rows.flatten().topk(min(count, of_rows.numel()))
    starts = torch.arange(0, numbers.numel(), numbers.shape[1], device=numbers.device)
    return found, (columns + starts[:, None]).flatten()[places]


def lowest(numbers: Tensor, chosen: Callable[[Tensor], Tensor]) -> Tensor:
    """Which of each row are the lowest, as far as a rule says; equal ones in the order of sorting. (B, V) -> (B, V)

    Args:
        chosen: the rule. It is given each row in ascending order, and says yes to some of the first. (B, V) -> (B, V)
    """
    if numbers.is_cpu:  # the order itself takes longer than the numbers in order, and is seldom asked for
        rising = torch.from_numpy(np.sort(numbers.detach().numpy(), axis=1))
        count = chosen(rising).sum(dim=1, keepdim=True)
        last, next_one = (rising.gather(1, (count + n).clamp(0, numbers.shape[1] - 1)) for n in (-1, 0))
        if ((last < next_one) | (count == 0)).all():  # else the order decides between equals
            return numbers < next_one
    rising, order = numbers.sort(dim=1)
    choice = chosen(rising)
    return choice.scatter(1, order, choice)
