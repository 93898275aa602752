"""Compiled graphs compute what the uncompiled code does, resume exactly, and say when they cannot."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

import proximo
from proximo import compiler
from proximo.advantages import standardize
from proximo.algorithms import ALGORITHMS
from proximo.batch import Batch
from proximo.compiler import compiling, fuse, fused
from proximo.compiler.library import Worker
from proximo.compiler.worker import rational_tanh
from proximo.errors import ConfigError, StaleGraph
from proximo.models.actor_critic import ActorCritic
from proximo.models.network import Network
from proximo.objectives import Diagnostics, Term, clip, entropy, per_action, value_error
from proximo.policy import Evaluation
from proximo.run.config import resolved
from proximo.run.machine import choose_compile
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd
from tests.conftest import DISTINCT, rest_slow
from tests.toys import Toy, remembered

SPACES = {
    "discrete": gym.spaces.Discrete(3, start=1),
    "multi-discrete": gym.spaces.MultiDiscrete([2, 3]),
    "multi-binary": gym.spaces.MultiBinary(4),
    "box": gym.spaces.Box(-2, 3, (2,)),
}
OBJECTIVE = clip(0.2) + 0.5 * value_error() - 0.01 * entropy()
SAME = torch.ones(3)
needs_compiler = pytest.mark.skipif(compiler.missing() is not None, reason=str(compiler.missing()))


def policy_for(space: gym.Space) -> ActorCritic:
    torch.manual_seed(0)
    network = Network(hidden=(16, 16), normalize_observation=True)
    policy = ActorCritic(gym.spaces.Box(-1, 1, (5,)), space, network)
    policy.observe(batch_for(policy))
    return policy


@torch.no_grad()
def batch_for(policy: ActorCritic, steps: int = 16, lanes: int = 4) -> Batch:
    """A random collection with a few dead rows."""
    torch.manual_seed(1)
    observation = torch.randn(steps, lanes, 5)
    action = policy.act(observation, policy.noise(steps, lanes))[0]
    batch = Batch(observation=observation, action=action, mask=torch.rand(steps, lanes) < 0.9)
    logp = policy.evaluate(batch).logp + 0.1 * torch.randn(steps, lanes)
    return batch.replace(logp=logp, advantage=torch.randn(steps, lanes), returns=torch.randn(steps, lanes))


def updated(
    compile: bool, space: gym.Space, objective: Term = OBJECTIVE, traceable: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """The parameters and the report after three updates."""
    policy = policy_for(space)
    optimizer, batch = Adam(policy, lr=3e-3, eps=1e-5, betas=(0.99, 0.98)), batch_for(policy)
    report: dict[str, Tensor] = {}
    with compiling(compile):
        for _ in range(3):
            report = sgd(policy, optimizer, objective, batch, 2, 4, 0.5, standardize)
    assert bool(optimizer.graphs) == compile
    assert all((graph.graph is not None) == traceable for graph in optimizer.graphs.values())
    return optimizer.state["vector"].clone(), report


@needs_compiler
@pytest.mark.parametrize("name", rest_slow(SPACES, ("discrete", "box")))
def test_an_update_gives_the_same_numbers(name: str) -> None:
    (one, told), (other, said) = updated(False, SPACES[name]), updated(True, SPACES[name])
    start = torch.cat([p.detach().reshape(-1) for p in policy_for(SPACES[name]).parameters()])
    assert (one - start).abs().max() > 1e-3, "it moved"
    torch.testing.assert_close(other, one, rtol=0, atol=2e-6)
    assert told.keys() == said.keys()
    for key, value in told.items():
        torch.testing.assert_close(said[key], value, rtol=1e-4, atol=1e-5)


MOVING = {"penalty": "beta", "adaptive_clip": "clip", "adaptive_lr": "lr"}


@needs_compiler
@pytest.mark.parametrize("algo", rest_slow(ALGORITHMS, DISTINCT))
def test_every_algorithm_is_compiled_once_and_for_all_its_updates(algo: str, caplog: pytest.LogCaptureFixture) -> None:
    """Updates of one graph, which is audited after the first and the sixteenth: what moves is seen by it."""
    wanted = dict(epochs=3, minibatches=2, cg_iterations=5)  # near their end, conjugate gradients magnify rounding
    short = {name: n for name, n in wanted.items() if hasattr(ALGORITHMS[algo].Config, name)}
    ends, moved = [], []
    for compile in (False, True):
        policy = policy_for(SPACES["box"])
        algorithm: Any = ALGORITHMS[algo](policy, ALGORITHMS[algo].Config(**short))
        begin = torch.cat([parameter.detach().reshape(-1).clone() for parameter in policy.parameters()])
        with compiling(compile), caplog.at_level(logging.WARNING, "proximo"):
            reports = [algorithm.step(collection_for(policy), 0.05 * update) for update in range(17)]
        ends.append(torch.cat([parameter.detach().reshape(-1) for parameter in policy.parameters()]))
        moved = [report[MOVING[algo]] for report in reports if algo in MOVING]
    assert [record.message for record in caplog.records if record.name == "proximo"] == []
    assert len(algorithm.optimizer.graphs) == 1 + ("cg_iterations" in short)  # policy and value function apart
    assert len(set(moved)) > 2 or algo not in MOVING
    assert (ends[0] - begin).abs().max() > 1e-3
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-5)


@torch.no_grad()
def collection_for(policy: ActorCritic) -> Batch:
    """The same observations each time, and what this policy does there."""
    batch = batch_for(policy)
    opinion, last = policy.evaluate(batch), torch.zeros(1, 4)
    flags = {name: torch.zeros_like(batch.mask) for name in ("terminated", "truncated", "start")}
    columns = dict(value=opinion.value, next_value=torch.cat([opinion.value[1:], last]), logp=opinion.logp)
    return remembered(policy, batch.replace(**flags, **columns, reward=batch.action[..., 0].sin()))


@needs_compiler
def test_every_call_is_the_same_again() -> None:
    assert torch.equal(updated(True, SPACES["box"])[0], updated(True, SPACES["box"])[0])


@needs_compiler
def test_a_compiled_run_is_the_uncompiled_one_up_to_rounding(tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(steps=768, envs=4, horizon=32, epochs=2, minibatches=4, quiet=True, eval_every=0)
    settings |= dict(normalize_observation=True, normalize_reward=True, hidden=(16,))
    runs = [
        proximo.train(Toy, **settings, compile=compile, out=tmp_path / f"{compile}-{i}")
        for i, compile in enumerate(("off", "on", "on"))
    ]
    states = [run.policy.state_dict() for run in runs]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-5)
        assert torch.equal(states[1][name], states[2][name])
    assert runs[1].config.run.compile == "on"


@needs_compiler
def test_a_function_of_a_module_reads_its_tensors_live() -> None:
    policy = policy_for(SPACES["box"])
    seen = torch.randn(3, 5)

    def value(observation: Tensor) -> tuple[Tensor]:
        return (policy.value(observation),)

    with compiling(True):
        call = fused(policy, value, [seen])
    assert call is not value
    for _ in range(2):
        torch.testing.assert_close(call(seen)[0], value(seen)[0].detach(), rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            policy.critic[0].weight.mul_(1.5)
        policy.observe(batch_for(policy))


def test_the_rational_tanh_is_near_the_exact_one() -> None:
    x = torch.linspace(-12, 12, 200_001)
    exact = x.double().tanh()
    assert (rational_tanh(x) - exact).abs().max() < 4e-7
    assert ((rational_tanh(x) - exact) / exact)[x != 0].abs().max() < 4e-7
    assert rational_tanh(torch.tensor([1e30, -1e30])).tolist() == pytest.approx([1, -1], abs=1e-6)
    assert rational_tanh(torch.tensor([torch.nan])).isnan().all()


class Numbers:
    """Plain numbers that may change."""

    def __init__(self) -> None:
        self.weight, self.epsilon = 1.0, 0.2

    def term(self) -> Term:
        def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
            ratio = (evaluation.logp - batch.logp).exp()
            clipped = ratio.clamp(1 - self.epsilon, 1 + self.epsilon)
            surrogate = torch.minimum(ratio * batch.advantage, clipped * batch.advantage)
            return self.weight * (evaluation.value - batch.returns).square() - surrogate, {}

        return per_action("both", formula)


@needs_compiler
@pytest.mark.parametrize(("name", "value"), [("weight", 3.0), ("epsilon", 0.001)])
def test_a_number_that_changes_behind_the_graph_is_noticed(name: str, value: float) -> None:
    policy, numbers = policy_for(SPACES["box"]), Numbers()
    optimizer, batch, objective = Adam(policy, lr=1e-2), batch_for(policy), numbers.term()
    with compiling(True):
        for _ in range(15):
            sgd(policy, optimizer, objective, batch, 1, 2, 0.5)
        before = optimizer.state["vector"].clone()
        setattr(numbers, name, value)
        with pytest.raises(StaleGraph, match="changed after it was compiled"):
            sgd(policy, optimizer, objective, batch, 1, 2, 0.5)
    assert torch.equal(optimizer.state["vector"], before)


@needs_compiler
def test_two_objectives_of_one_optimizer_keep_their_names() -> None:
    policy = policy_for(SPACES["box"])
    optimizer, batch = Adam(policy, lr=1e-3), batch_for(policy)
    one, other = clip(0.2) + value_error(), value_error()
    with compiling(True):
        seen = [sgd(policy, optimizer, objective, batch, 1, 2, 0.5) for objective in (one, other, one, other, one)]
    assert [sorted(report) for report in seen[::2]] == [sorted(seen[0])] * 3
    assert "kl" in seen[2]
    assert "kl" not in seen[3]
    total = (seen[4]["policy_loss"] + seen[4]["value_loss"]).item()
    assert seen[4]["loss"].item() == pytest.approx(total, rel=1e-4)


@needs_compiler
def test_steps_that_draw_random_numbers_are_compiled_too() -> None:
    policy = policy_for(SPACES["box"])
    policy.critic.insert(1, torch.nn.Dropout(0.5))
    optimizer, batch = Adam(policy, lr=1e-3), batch_for(policy)
    ends = []
    with compiling(True):
        for _ in range(2):
            torch.manual_seed(5)
            optimizer.restore({name: torch.zeros_like(x) for name, x in optimizer.state.items() if "exp" in name})
            start = optimizer.state["vector"].clone()
            sgd(policy, optimizer, value_error(), batch, 1, 2, 0.5)
            ends.append(optimizer.state["vector"].clone())
            optimizer.state["vector"].copy_(start)
            for power in ("power1", "power2"):
                optimizer.state[power].fill_(1)
    assert torch.equal(*ends)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
def test_a_frozen_parameter_stays(compile: bool) -> None:
    policy = policy_for(SPACES["box"])
    frozen = policy.critic[0].weight.requires_grad_(False)
    before = frozen.clone()
    optimizer, batch = Adam(policy, lr=1e-2), batch_for(policy)
    last = policy.critic[-1].weight.detach().clone()
    with compiling(compile):
        sgd(policy, optimizer, OBJECTIVE, batch, 2, 2, 0.5)
    assert torch.equal(frozen, before)
    assert not torch.equal(policy.critic[-1].weight, last)


def test_an_optimizer_that_lost_its_policy_says_so() -> None:
    policy = policy_for(SPACES["box"])
    first = Adam(policy, lr=1e-2)
    Adam(policy, lr=1e-2)
    with pytest.raises(ConfigError, match="no longer this optimizer's"):
        sgd(policy, first, OBJECTIVE, batch_for(policy), 1, 2, 0.5)


def test_a_diagnostic_alone_stops_nothing() -> None:
    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        return (evaluation.value - batch.returns).square(), {"odd": torch.full_like(evaluation.value, torch.nan)}

    policy = policy_for(SPACES["box"])
    report = sgd(policy, Adam(policy, lr=1e-2), per_action("value_loss", formula), batch_for(policy), 1, 2, 0.5)
    assert report["odd"].isnan()
    assert report["loss"].isfinite()


def asks_for_a_number() -> Term:
    """A Term whose Python looks at a tensor's value: it cannot be traced."""

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        error = (evaluation.value - batch.returns).square()
        return (error if error.mean().item() > 0 else -error), {}

    return per_action("value_loss", formula)


@needs_compiler
def test_what_cannot_be_traced_runs_uncompiled_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    objective = asks_for_a_number()
    with caplog.at_level(logging.WARNING, "proximo"):
        (one, _), (other, _) = (
            updated(False, SPACES["box"], objective),
            updated(True, SPACES["box"], objective, traceable=False),
        )
    assert torch.equal(one, other)
    assert [("cannot be compiled" in record.message) for record in caplog.records] == [True]


@needs_compiler
def test_a_tensor_that_a_function_closes_over_is_used_where_it_is() -> None:
    scale, x = torch.tensor(2.0), torch.randn(3)
    with compiling(True):
        call = fuse(lambda x: (x * scale, x[0], torch.tensor([1.0, 2.0])), [x])
        assert call is not None
        product, first, constant = call(x)
        assert torch.equal(product, 2 * x)
        assert torch.equal(constant, torch.tensor([1.0, 2.0]))
        scale.fill_(3.0)
        assert torch.equal(call(x)[0], 3 * x)
        x.zero_()
        assert first != 0, "a result is no view of an argument"


@needs_compiler
@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x[x > 0],),
        lambda x: (x.nonzero(),),
        lambda x: (x * x.sum().item(),),
        lambda x: (SAME + x,),
        lambda x: (x * x.tolist()[0],),
        lambda x: (torch.from_numpy(2 * x.numpy()),),
        lambda x: (x * np.asarray(x)[0],),
    ],
)
def test_what_depends_on_numbers_is_not_compiled(function: Any) -> None:
    with compiling(True):
        assert fuse(function, [SAME]) is None


@needs_compiler
def test_operations_that_return_nothing_are_done() -> None:
    def function(x: Tensor) -> tuple[Tensor]:
        torch._foreach_add_([x], 1.0)  # type: ignore[attr-defined]
        return (2 * x,)

    x = torch.ones(3)
    with compiling(True):
        call = fuse(function, [x])
        assert call is not None
        assert torch.equal(call(x)[0], torch.full((3,), 4.0))
    assert torch.equal(x, torch.full((3,), 2.0))


@needs_compiler
def test_two_traces_of_one_graph_are_both_compiled() -> None:
    now = time.time()
    with compiling(True):
        for function in (lambda x: (x * now + 0,), lambda x: (x * now + 0.0,)):
            call = fuse(function, [SAME])
            assert call is not None
            torch.testing.assert_close(call(SAME)[0], SAME * now)


@needs_compiler
def test_a_damaged_library_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with compiling(True):
        assert fuse(lambda x: (x + 2,), [SAME]) is not None
        [library] = (tmp_path / "proximo").glob("graph-*.so")
        assert (tmp_path / "proximo").stat().st_mode & 0o777 == 0o700
        library.unlink()  # this process has it loaded
        library.write_bytes(b"")
        call = fuse(lambda x: (x + 2,), [SAME])
        assert call is not None
        assert torch.equal(call(SAME)[0], SAME + 2)


@needs_compiler
def test_a_wait_that_is_cut_short_spoils_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(*_: Any) -> Any:
        raise KeyboardInterrupt

    now = time.time()
    with compiling(True):
        with monkeypatch.context() as patch:
            patch.setattr("proximo.compiler.library.select.select", impatient)
            with pytest.raises(KeyboardInterrupt):
                fuse(lambda x: (x - now,), [SAME])
        call = fuse(lambda x: (x + now,), [SAME])
        assert call is not None
        torch.testing.assert_close(call(SAME)[0], SAME + now)


@needs_compiler
def test_a_compiling_process_that_dies_is_started_again() -> None:
    with compiling(True):
        for number in (0.25, 0.75):
            assert fuse(lambda x, number=number: (x + number + time.time(),), [torch.ones(2)]) is not None
            assert Worker.running is not None
            Worker.running.process.kill()
            Worker.running.process.wait()


@needs_compiler
def test_a_new_objective_for_every_update_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proximo.updaters.graph.MOST_GRAPHS", 2)
    policy = policy_for(SPACES["box"])
    optimizer, batch = Adam(policy, lr=1e-3), batch_for(policy)
    with compiling(True):
        for _ in range(2):
            sgd(policy, optimizer, clip(0.2) + value_error(), batch, 1, 2, 0.5)
        with pytest.raises(ConfigError, match="make an objective once"):
            sgd(policy, optimizer, clip(0.2) + value_error(), batch, 1, 2, 0.5)


def test_without_a_compiler_a_run_goes_on_uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    run = proximo.train(Toy, steps=64, envs=2, horizon=16, compile="on", quiet=True, out=tmp_path / "run")
    assert run.config.run.compile == "off"
    assert np.isfinite(run.metrics["loss"])


@pytest.mark.parametrize(("steps", "expected"), [(20_000, "off"), (10_000_000, "on")])
def test_auto_decides_by_the_length_of_the_run(steps: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "missing", lambda: None)
    chosen, why = choose_compile(resolved("CartPole-v1", "ppo", "discrete", dict(steps=steps)))
    assert chosen == expected
    assert "this run" in why


Decide = Callable[[str], str]


@pytest.mark.parametrize("asked", ["on", "off"])
def test_what_was_asked_for_is_done(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "missing", lambda: None)
    assert choose_compile(resolved("CartPole-v1", "ppo", "discrete", dict(compile=asked)))[0] == asked
