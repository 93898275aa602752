"""Rows of an LSTM that oneDNN computes at once: outputs, derivatives, and derivatives of these are the formula's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from proximo.batch import leaves_of
from proximo.kernels import lstm
from proximo.models.memory import LSTM

Starts = tuple[tuple[int, int], ...]  # rows and lanes


def rows_of_an_lstm(starts: Starts) -> tuple[LSTM, list[Tensor], Tensor]:
    """A module in float64, what it is given, and where episodes begin."""
    torch.manual_seed(0)
    module = LSTM(5, 7, layers=2).double()
    start = torch.zeros(24, 3, dtype=torch.bool)
    for row, lane in starts:
        start[row, lane] = True
    return module, [torch.randn(24, 3, 5).double(), *(torch.randn(3, 7).double() for _ in range(4))], start


def put_out(module: LSTM, given: list[Tensor], start: Tensor) -> list[Tensor]:
    outputs, state = module(given[0], ((given[1], given[2]), (given[3], given[4])), start)
    return [outputs, *leaves_of(state)]


NONE, ONE, MANY = (), ((5, 1),), ((0, 0), (3, 1), (4, 1), (5, 0), (20, 2), (23, 1))


@pytest.mark.parametrize("starts", [NONE, ONE, MANY, tuple((t, t % 3) for t in range(24))])
def test_lanes_at_once_are_those_row_by_row(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    module, given, start = rows_of_an_lstm(starts)
    expected = put_out(module, given, start)
    asked: list[int] = []
    kernel = lstm.rows
    monkeypatch.setattr(lstm, "rows", lambda *a: asked.append(len(a[1])) or kernel(*a))
    found = put_out(module.float(), [x.float() for x in given], start)
    assert len(asked) == 2  # one call a layer
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("starts", [ONE, MANY])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_derivatives_of_rows_at_once_are_those_of_the_formula(twice: bool, starts: Starts) -> None:
    """The second ones are of a product of the first with fixed numbers, as natural gradients have them."""
    found = []
    for kind in (torch.float64, torch.float32):
        module, given, start = rows_of_an_lstm(starts)
        of = [x.to(kind).requires_grad_() for x in given]
        parameters = [*of, *module.to(kind).parameters()]
        made = put_out(module, of, start)
        slopes = [torch.linspace(-1, 1, x.numel(), dtype=kind).view_as(x).requires_grad_() for x in made]
        first = torch.autograd.grad(made, parameters, slopes, create_graph=twice)
        if twice:
            ones = [torch.linspace(0, 1, x.numel(), dtype=kind).view_as(x) for x in first]
            first = torch.autograd.grad(first, [*slopes, *parameters], ones)
        found.append([x.double() for x in first])
    for exact, ours in zip(*found, strict=True):
        assert (ours - exact).norm() <= 3e-6 * exact.norm()
