"""Compiled gradient steps of every kind of policy are those of the same steps uncompiled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from proximo.advantages import standardize
from proximo.batch import Batch
from proximo.compiler import compiling
from proximo.models.actor_critic import ActorCritic
from proximo.models.network import Network
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd
from tests.conftest import rest_slow
from tests.test_attack import SEEING, walked
from tests.test_compiled import OBJECTIVE, needs_compiler


def updated(compile: bool, kind: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The parameters before and after three updates, and the last one's report."""
    torch.manual_seed(0)
    seen, acts, numbers = SEEING[kind]
    policy = ActorCritic(seen, acts, Network(hidden=(8,), normalize_observation=True, **numbers))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    batch = Batch(**{column: x for column, x in vars(walked(policy)).items() if not column.startswith("last")})
    batch = batch.replace(advantage=torch.randn(batch.mask.shape), returns=torch.randn(batch.mask.shape))
    optimizer = Adam(policy, lr=3e-3, eps=1e-5)
    before, report = optimizer.state["vector"].clone(), dict[str, Tensor]()
    with compiling(compile):
        for _ in range(3):
            report = sgd(policy, optimizer, OBJECTIVE, batch, 2, 2, 0.5, standardize)
    assert [graph.graph is not None for graph in optimizer.graphs.values()] == [True] * compile
    return before, optimizer.state["vector"].clone(), report


@needs_compiler
@pytest.mark.parametrize("kind", rest_slow(SEEING, ("masked, lstm", "tree")))
def test_an_update_of_any_kind_gives_the_same_numbers(kind: str) -> None:
    (before, one, told), (_, other, said) = updated(compile=False, kind=kind), updated(compile=True, kind=kind)
    assert (one - before).abs().max() > 1e-3, "it moved"
    assert (other - one).norm() <= 1e-3 * (one - before).norm()  # Adam magnifies the rounding of small gradients
    assert told.keys() == said.keys()
    for key, value in told.items():
        torch.testing.assert_close(said[key], value, rtol=1e-4, atol=1e-5)
