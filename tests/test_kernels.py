"""The product kernel agrees with float64 for every shape and layout it takes, and leaves the others to torch."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from proximo import compiler, kernels
from proximo.compiler import compiling, fuse
from proximo.threads import threads

pytestmark = pytest.mark.skipif(kernels.loaded() is None, reason="not for this processor, or no compiler")
SIZES = [(256, 64, 64), (64, 17, 64), (7, 5, 16), (1, 64, 64), (13, 3, 48), (6, 64, 96), (4, 1, 16), (33, 70, 80)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


def laid_out(rows: int, columns: int, how: str) -> Tensor:
    """A random matrix: by rows, by columns, or a slice of a larger one."""
    if how == "columns":
        return torch.randn(columns, rows).t()
    return torch.randn(rows, columns + 3)[:, 1 : columns + 1] if how == "slice" else torch.randn(rows, columns)


def products(cases: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """Each a @ b, in one graph."""

    def all_of_them(*factors: Tensor) -> tuple[Tensor, ...]:
        return tuple(a @ b for a, b in zip(factors[::2], factors[1::2], strict=True))

    with compiling(True):
        graph = fuse(all_of_them, [factor for case in cases for factor in case])
    assert graph is not None
    return graph(*[factor for case in cases for factor in case])


@pytest.mark.parametrize("left", ["rows", "columns", "slice"])
@pytest.mark.parametrize("right", ["rows", "columns", "slice"])
def test_products_are_right(left: str, right: str) -> None:
    torch.manual_seed(0)
    shapes = [*SIZES, *((n, k, m) for m, k, n in SIZES), (32, 64, 1), (64, 9, 2), (5, 7, 3)]
    cases = [(laid_out(m, k, left), laid_out(k, n, right)) for m, k, n in shapes]
    assert sum(kernels.fits(a, b) for a, b in cases) >= len(SIZES)
    assert not all(kernels.fits(a, b) for a, b in cases)
    for (a, b), c in zip(cases, products(cases), strict=True):
        exact = a.double() @ b.double()
        torch.testing.assert_close(c.double(), exact, rtol=1e-5, atol=2e-6 * a.shape[1] ** 0.5)
        assert c.is_contiguous()


def test_nan_and_infinity_pass_through() -> None:
    a, b = torch.ones(8, 16), torch.ones(16, 32)
    a[3, 5], b[7, 9] = torch.nan, torch.inf
    (c,) = products([(a, b)])
    assert c[3].isnan().all()
    assert c[0, 9].isinf()
    assert c[:3].isfinite().sum() == 3 * 31


def test_others_are_left_to_torch() -> None:
    assert kernels.fits(torch.zeros(64, 64), torch.zeros(64, 64))
    assert not kernels.fits(torch.zeros(64, 64).double(), torch.zeros(64, 64).double())
    assert not kernels.fits(torch.zeros(64, 64), torch.zeros(64, 5))
    assert not kernels.fits(torch.zeros(4096, 4096), torch.zeros(4096, 4096))


def test_a_compiler_that_fails_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise subprocess.CalledProcessError(1, "g++")

    monkeypatch.setattr(kernels, "built", fails)
    assert not kernels.load.__wrapped__()
    monkeypatch.setattr(kernels, "loaded", lambda: None)
    assert kernels.decompositions() == kernels.shims() == {}
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    torch.testing.assert_close(products([(a, b)])[0], a @ b)


def test_many_threads_use_torchs_own() -> None:
    assert kernels.product_op() is not None
    with threads(2):
        assert kernels.product_op() is None


def test_a_graph_names_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    assert "C++ compiler" in str(compiler.missing())
