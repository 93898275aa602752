"""Non-finite numbers never reach the weights: each is stopped by an error that says what it was, where and when.

After every failure the weights are bit for bit those before the update, and the last checkpoint holds what was saved.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from torch import Tensor

import proximo
from proximo.batch import Batch
from proximo.errors import EnvFailure, NonFiniteError, ProximoError
from proximo.models.actor_critic import ActorCritic
from proximo.models.network import Network
from proximo.objectives import Diagnostics, Term, value_error
from proximo.policy import Evaluation
from proximo.run import checkpoint, session
from proximo.run.seeding import LANES, derived
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd

LANE = 2  # the one of four that fails
FIRST_SEED = derived(0, LANES, 0)  # of lane 0, when a run of seed 0 starts
SMALL = dict(steps=200, envs=4, horizon=2, minibatches=2, epochs=2, hidden=(8,), eval_every=0, quiet=True)


class Faulty(gym.Env):
    """Episodes of six steps. In one lane, `at` steps after the first reset, what `where` says is `value`."""

    def __init__(self, where: str, at: int, value: float) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.where, self.at, self.value = where, at, value
        self.lane, self.taken, self.open = -1, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.lane, self.open = self.lane if seed is None else seed - FIRST_SEED, 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.taken, self.open = self.taken + 1, self.open + 1
        if self.where == "worker" and self.now():
            raise FloatingPointError("the physics gave nan")
        return self.observe(), self.value if self.reward_fails() else 1.0, False, self.open == 6, {}

    def reward_fails(self) -> bool:
        return self.where == "every reward" or (self.where == "reward" and self.now())

    def now(self) -> bool:
        return self.lane == LANE and self.taken == self.at

    def observe(self) -> np.ndarray:
        row = np.array([self.open, 1, -1], np.float32)
        if self.where == "observation" and self.now():
            row[1] = self.value
        return row


Weights = dict[str, Tensor]


class Watched(NamedTuple):
    """What is left of a run that failed: `train` returned none."""

    policy: ActorCritic
    before: dict[int, Weights]  # the weights with which each update began


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Every run that is built."""
    found: list[Watched] = []
    real = session.build

    def build(*parts: Any) -> proximo.Run:
        run = real(*parts)
        found.append(Watched(run.policy, {}))
        collect = run.source.collect

        def remember() -> None:
            found[-1].before[run.update] = {name: tensor.clone() for name, tensor in run.policy.state_dict().items()}

        def remember_and_collect(policy: ActorCritic) -> Batch:
            remember()
            return collect(policy)

        remember()
        monkeypatch.setattr(run.source, "collect", remember_and_collect)
        return run

    monkeypatch.setattr(session, "build", build)
    return found


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def failure(env: Any, watched: list[Watched], out: Path, error: type[ProximoError], **settings: Any) -> str:
    """Train until it fails; assert that nothing bad was learned or saved, and return what was said."""
    with pytest.raises(error) as caught:
        proximo.train(env, **(SMALL | settings), out=out)
    ((policy, before),) = watched
    assert same(policy.state_dict(), before[max(before)])
    assert all(bool(tensor.isfinite().all()) for tensor in policy.state_dict().values())
    saved = checkpoint.latest(out, pytest.fail)
    assert same(saved.model, before[saved.info["update"]])
    assert proximo.load(out).act(np.ones(3)) in (0, 1)
    return str(caught.value)


def vector(kind: type[VectorEnv], mode: AutoresetMode, make: Callable[[], gym.Env]) -> VectorEnv:
    return kind([make] * 4, autoreset_mode=mode)  # type: ignore[call-arg]


SYNC, ASYNC = SyncVectorEnv, AsyncVectorEnv
SETTINGS: dict[str, tuple[Callable[[Any], Any], dict[str, str]]] = {
    "sync": (lambda make: make, {"backend": "sync"}),
    "async": (lambda make: make, {"backend": "async"}),
    "own, same step": (partial(vector, SYNC, AutoresetMode.SAME_STEP), {}),
    "own workers, same step": (partial(vector, ASYNC, AutoresetMode.SAME_STEP), {}),
    "own, disabled": (partial(vector, SYNC, AutoresetMode.DISABLED), {}),
}
# The reset; the third update; the last step of an episode.
MOMENTS = {"reset": ("observation", 0), "observation": ("observation", 5), "final observation": ("observation", 6)}
MOMENTS |= {"reward": ("reward", 5), "final reward": ("reward", 6)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_from_the_environment(setting: str, moment: str, value: float, watched: list[Watched], tmp_path: Path) -> None:
    (where, at), (lanes, backend) = MOMENTS[moment], SETTINGS[setting]
    env = lanes(partial(Faulty, where, at, value))
    try:
        said = failure(env, watched, tmp_path / "run", NonFiniteError, **backend)
    finally:
        if isinstance(env, VectorEnv):
            env.close()
    assert re.search(rf"(^| ){value}\b.*\blane {LANE}\b.*\bstep {at}\b", said), said
    assert where in said
    assert max(watched[0].before) == max(0, at - 1) // 2, "the updates before it were made"


@pytest.mark.filterwarnings("ignore:.*ERROR")  # Gymnasium's, with the worker's traceback
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_environment_that_raises(backend: str, watched: list[Watched], tmp_path: Path) -> None:
    make = partial(Faulty, "worker", 5, 0.0)
    said = failure(make, watched, tmp_path / "run", EnvFailure, backend=backend)
    assert "FloatingPointError" in said
    assert "the physics gave nan" in said


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("reward", "told"),
    [
        (1e39, r"the reward is inf in lane 0 at step 1 of its environment"),  # more than float32 holds
        (1e38, r"advantage is inf at step \d of the rollout, lane \d"),  # the sum of four is
        (1e20, r"the loss is inf although every column of the batch is finite"),  # its square is
    ],
)
def test_rewards_too_large(reward: float, told: str, normalize: bool, watched: list[Watched], tmp_path: Path) -> None:
    make = partial(Faulty, "every reward", 0, reward)
    settings = dict(backend="sync", horizon=8, gamma=1.0, lam=1.0, normalize_observation=normalize)
    assert re.search(told, failure(make, watched, tmp_path / "run", NonFiniteError, **settings))


def test_learning_rate_too_large(watched: list[Watched], tmp_path: Path) -> None:
    make = partial(Faulty, "nothing", 0, 0.0)
    said = failure(make, watched, tmp_path / "run", NonFiniteError, backend="sync", lr=1e38, checkpoint_every=8)
    assert "undone" in said


def small_policy() -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(2), Network(hidden=(8,)))


def small_batch() -> Batch:
    """Eight steps in four lanes, all finite."""
    shape, generator = (8, 4), torch.Generator().manual_seed(0)
    return Batch(
        observation=torch.randn(*shape, 3, generator=generator),
        action=torch.randint(2, shape, generator=generator),
        mask=torch.ones(shape, dtype=torch.bool),
        returns=torch.randn(shape, generator=generator),
    )


def from_the_fifth(spoil: Callable[[Tensor], Tensor]) -> Term:
    """The value error, to whose loss `spoil` is done from the fifth minibatch on: after weights have changed."""
    calls: list[int] = []

    def compute(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        calls.append(1)
        loss, report = value_error()(evaluation, batch)
        return (spoil(loss) if len(calls) > 4 else loss), report

    return Term(compute)


class Backwards(torch.autograd.Function):
    """Passes its input on, and its gradient multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[0] * ctx.factor, None


SPOILED: dict[str, tuple[Callable[[Tensor], Tensor], float, str]] = {
    "loss nan": (lambda loss: loss * torch.nan, 1e-3, "the loss is nan"),
    "loss inf": (lambda loss: loss + torch.inf, 1e-3, "the loss is inf"),
    "gradient nan": (lambda loss: Backwards.apply(loss, torch.nan), 1e-3, "the gradient is not finite"),
    "gradient inf": (lambda loss: Backwards.apply(loss, torch.inf), 1e-3, "the gradient is not finite"),
    "gradient too long": (lambda loss: Backwards.apply(loss, 1e30), 1e-3, "the gradient is not finite"),
    "weights": (lambda loss: loss, 1e39, "undone"),
}


@pytest.mark.parametrize("case", SPOILED)
@pytest.mark.parametrize("epochs", [2, 3])
def test_an_update_is_undone_as_a_whole(case: str, epochs: int) -> None:
    spoil, lr, told = SPOILED[case]
    policy, batch = small_policy(), small_batch()
    before = [p.detach().clone() for p in policy.parameters()]
    optimizer = Adam(policy, lr=lr)
    with pytest.raises(NonFiniteError, match=told):
        sgd(policy, optimizer, from_the_fifth(spoil), batch, epochs, minibatches=4, max_grad_norm=0.5)
    assert all(torch.equal(p, old) for p, old in zip(policy.parameters(), before, strict=True))


def test_the_same_update_without_a_fault_is_kept() -> None:
    policy, batch = small_policy(), small_batch()
    before = [p.detach().clone() for p in policy.parameters()]
    optimizer = Adam(policy, lr=1e-3)
    sgd(policy, optimizer, from_the_fifth(lambda loss: loss), batch, 2, minibatches=4, max_grad_norm=0.5)
    assert not all(torch.equal(p, old) for p, old in zip(policy.parameters(), before, strict=True))


@pytest.mark.parametrize("column", ["observation", "returns"])
def test_the_error_names_the_column_the_step_and_the_lane(column: str) -> None:
    policy, batch = small_policy(), small_batch()
    vars(batch)[column][5, 3] = torch.nan
    with pytest.raises(NonFiniteError, match=f"{column} is nan at step 5 of the rollout, lane 3"):
        sgd(policy, Adam(policy, lr=1e-3), value_error(), batch, 1, minibatches=4, max_grad_norm=0.5)
