"""The largest of each row, and rows in order."""

from __future__ import annotations

import torch

from gpt2tg.decoding.ordering import argmax, ascending


def test_of_several_largest_it_is_the_first() -> None:
    assert argmax(torch.tensor([[1.0, 3.0, 3.0], [-torch.inf, -torch.inf, -torch.inf], [5.0, 4.0, 5.0]])).tolist() == [
        1, 0, 0,
    ]  # fmt: skip


def test_rows_are_ordered_each_for_itself() -> None:
    numbers = torch.tensor([[2.0, -torch.inf, 1.0], [0.0, 7.0, -1.0]])
    assert ascending(numbers).tolist() == [[-torch.inf, 1, 2], [-1, 0, 7]]
    assert numbers.tolist() == [[2, -torch.inf, 1], [0, 7, -1]]


def test_any_part_of_a_tensor_will_do() -> None:
    """Columns, which do not lie side by side, and what takes part in learning."""
    columns = torch.arange(12.0).view(3, 4).t().requires_grad_()
    assert argmax(columns).tolist() == [2] * 4
    assert ascending(columns[:, [2, 0]]).tolist() == [[n, n + 8] for n in range(4)]
