"""Argmax, the highest of all rows, and the lowest of each row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpt2tg.decoding.ordering import argmax, highest, lowest

BANNED = -torch.inf


def first(*counts: int) -> Callable[[Tensor], Tensor]:
    """Return a rule for `lowest` that chooses so many numbers of each row."""

    def rule(ascending: Tensor) -> Tensor:
        assert (ascending.diff(dim=1) >= 0).all()
        return torch.arange(ascending.shape[1]) < torch.tensor(counts)[:, None]

    return rule


def test_argmax_returns_the_first_of_equal_numbers() -> None:
    assert argmax(torch.tensor([[1.0, 3.0, 3.0], [BANNED, BANNED, BANNED], [5.0, 4.0, 5.0]])).tolist() == [1, 0, 0]


def test_highest_of_all_rows_are_in_descending_order() -> None:
    """Also if one row has more of them than the other, and if there are fewer than asked for."""
    numbers = torch.tensor([[2.0, 9.0, 7.0, 8.0], [BANNED, 0.0, 8.5, 1.0]])
    found, places = highest(numbers, 4)
    assert (found.tolist(), places.tolist()) == ([9, 8.5, 8, 7], [1, 6, 3, 2])
    found, places = highest(numbers, 100)
    assert found.tolist() == sorted(numbers.flatten().tolist(), reverse=True)
    assert numbers.flatten()[places].tolist() == found.tolist()


def test_lowest_marks_the_smallest_of_each_row() -> None:
    numbers = torch.tensor([[2.0, BANNED, 1.0], [0.0, 7.0, -1.0], [3.0, 4.0, 5.0], [3.0, 4.0, 5.0]])
    before = numbers.clone()
    marked = lowest(numbers, first(2, 1, 0, 3))
    assert marked.tolist() == [[False, True, True], [False, False, True], [False] * 3, [True] * 3]
    assert torch.equal(numbers, before)


@pytest.mark.parametrize("count", range(6))
def test_lowest_marks_as_many_equal_numbers_as_the_rule_says(count: int) -> None:
    numbers = torch.tensor([[1.0, 0.0, 1.0, 1.0, 2.0]])
    marked = lowest(numbers, first(count))[0]
    assert int(marked.sum()) == count
    assert sorted(numbers[0][marked].tolist()) == [0, 1, 1, 1, 2][:count]


def test_views_of_tensors_are_accepted() -> None:
    """Tensors that are not contiguous, and tensors that require gradients."""
    columns = torch.arange(12.0).view(3, 4).t().requires_grad_()
    assert argmax(columns).tolist() == [2] * 4
    assert lowest(columns[:, [2, 0]], first(1, 1, 1, 1)).tolist() == [[False, True]] * 4
