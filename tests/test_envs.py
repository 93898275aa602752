"""Every backend and autoreset mode tells the same story: true final observations, and nothing learned from dead rows.

The corridor's values are known in closed form, so a policy that knows them has advantages of exactly zero wherever the
bootstrap is right, and visibly not where it is wrong. EnvPool cannot run our corridor; there CartPole's own equation
x' = x + τ ẋ tells what the true next position is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from proximo.advantages import gae, revalue
from proximo.batch import Batch
from proximo.errors import EnvFailure
from proximo.models.distributions import Categorical
from proximo.policy import Evaluation
from proximo.sources.backends import lanes_for
from proximo.sources.envpool import EnvPoolLanes
from proximo.sources.envs import EnvSource
from proximo.sources.making import single
from tests.toys import GAMMA, Corridor, corridor_value


class Oracle(nn.Module):
    """A policy that always takes action 1 and knows the value of every observation."""

    device = torch.device("cpu")

    def __init__(self, value: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.known = value

    def value(self, observation: Tensor, memory: Any = (), start: Tensor | None = None) -> Tensor:
        return self.known(observation)

    def initial(self, lanes: int) -> tuple[()]:
        return ()

    def noise(self, *shape: int) -> Tensor:
        return torch.zeros(shape)

    def act(
        self, observation: Tensor, noise: Tensor | None, memory: Any = (), start: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        return torch.ones(len(observation), dtype=torch.int64), ()

    def to_env(self, action: Tensor) -> np.ndarray:
        return action.numpy()

    def evaluate(self, batch: Batch) -> Evaluation:
        logits = torch.zeros(*batch.action.shape, 2)
        return Evaluation(torch.zeros(batch.action.shape), self.value(batch.observation), Categorical(logits))

    def observe(self, batch: Batch) -> None: ...


def knows_the_corridor() -> Oracle:
    return Oracle(lambda observation: corridor_value(observation.squeeze(-1).double()))


def collections(make: Callable[[int], gym.vector.VectorEnv], policy: Oracle, horizon: int, count: int) -> list[Batch]:
    source = EnvSource(make, horizon)
    source.restart(seed=3)
    batches = [source.collect(policy) for _ in range(count)]  # type: ignore[arg-type]
    source.close()
    return batches


MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
LIMITS = [3, 4, 5, 6, 50]  # lanes that truncate at different times, and one that never does


@pytest.mark.parametrize("lanes", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("horizon", [1, 2, 7, 30])
def test_a_policy_that_knows_the_values_has_no_advantage(lanes: type, mode: AutoresetMode, horizon: int) -> None:
    makers = [lambda limit=limit: Corridor(limit=limit) for limit in LIMITS]
    batches = collections(lambda seed: lanes(makers, autoreset_mode=mode), knows_the_corridor(), horizon, 60 // horizon)
    for batch in batches:
        estimated = gae(batch, GAMMA, 0.95)
        assert estimated.advantage.abs().max() < 1e-6
        live = batch.mask
        torch.testing.assert_close(
            batch.next_value[live & ~batch.terminated],
            corridor_value(batch.observation.squeeze(-1).double() + 1)[live & ~batch.terminated],
        )
        assert (batch.reward == live.float()).all()
        assert (batch.terminated == (live & (batch.observation.squeeze(-1) == 6))).all()
    whole = {
        name: torch.cat([getattr(b, name) for b in batches]) for name in ("mask", "truncated", "terminated", "start")
    }
    ended = whole["truncated"] | whole["terminated"]
    assert whole["truncated"].any()
    assert whole["terminated"].any()
    dead = int((~whole["mask"]).sum())
    assert dead == (int(ended[:-1].sum()) if mode == AutoresetMode.NEXT_STEP else 0)
    assert torch.equal(whole["start"][1:], (ended[:-1] if dead == 0 else ~whole["mask"][:-1]))
    assert whole["start"][0].all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("horizon", [1, 7, 30])
def test_a_critic_that_changed_is_asked_again(mode: AutoresetMode, horizon: int) -> None:
    """A critic that doubled all values: every row gets the new ones, but where the next observation is not at hand."""
    makers = [lambda limit=limit: Corridor(limit=limit) for limit in LIMITS]
    knows, doubles = knows_the_corridor(), Oracle(lambda x: 2 * corridor_value(x.squeeze(-1).double()))
    for batch in collections(lambda seed: SyncVectorEnv(makers, autoreset_mode=mode), knows, horizon, 60 // horizon):
        again = revalue(batch, doubles.value(batch.observation))
        torch.testing.assert_close(again.value, 2 * batch.value)
        stays = torch.zeros_like(batch.mask)
        stays[-1] = True
        if mode != AutoresetMode.NEXT_STEP:
            stays |= batch.truncated | batch.terminated
        wanted = torch.where(stays, 1, 2) * batch.next_value
        torch.testing.assert_close(again.next_value[batch.mask], wanted[batch.mask])
        assert horizon == 1 or (again.next_value != batch.next_value)[batch.mask].any()


def test_wrong_bootstraps_would_be_seen() -> None:
    """The proof above can fail: each of the known mistakes leaves an advantage."""
    makers = [lambda limit=limit: Corridor(limit=limit) for limit in LIMITS]
    policy, mode = knows_the_corridor(), AutoresetMode.NEXT_STEP
    [batch] = collections(lambda seed: SyncVectorEnv(makers, autoreset_mode=mode), policy, 30, 1)
    merged = batch.replace(terminated=batch.terminated | batch.truncated)
    dead_learned = batch.replace(mask=torch.ones_like(batch.mask))
    own_value = batch.replace(next_value=torch.where(batch.truncated, batch.value, batch.next_value))
    for wrong in (merged, dead_learned, own_value):
        assert gae(wrong, GAMMA, 0.95).advantage.abs().max() > 0.1


TAU = 0.02  # CartPole's time step: x' = x + τ ẋ


def cartpole_lanes(backend: str) -> Callable[[int], gym.vector.VectorEnv]:
    if backend == "vector entry point":
        return lambda seed: gym.make_vec("CartPole-v1", 6, max_episode_steps=7)
    if backend == "envpool":
        return lambda seed: EnvPoolLanes("CartPole-v1", 6, seed, limit=7)
    kind = {"sync": SyncVectorEnv, "async": AsyncVectorEnv}[backend]
    return lambda seed: kind([lambda: gym.make("CartPole-v1", max_episode_steps=7)] * 6)


@pytest.mark.parametrize("limit", [7, 500])
@pytest.mark.parametrize("backend", ["sync", "vector entry point", "async", "envpool"])
def test_the_next_value_is_that_of_the_true_next_state(
    backend: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    position = Oracle(lambda observation: observation[..., 0].double())
    if limit == 500:  # always pushing right, every episode then terminates after 8 to 11 steps
        make = lanes_for("CartPole-v1", 6, {"vector entry point": "sync"}.get(backend, backend)).make
    else:
        make = cartpole_lanes(backend)
    for batch in collections(make, position, 40, 3):
        live = batch.mask
        moved = batch.observation[..., 0].double() + TAU * batch.observation[..., 1].double()
        torch.testing.assert_close(batch.next_value[live], moved[live], rtol=0, atol=1e-6)
        assert batch.truncated.any() == (limit == 7)
        assert batch.terminated.any() == (limit == 500)
        assert (~live).any()
        assert (batch.reward == live.float()).all()


def test_lengths_and_returns_of_episodes() -> None:
    source = EnvSource(lambda seed: SyncVectorEnv([lambda: Corridor(limit=4)]), 15)
    source.restart(0)
    source.collect(knows_the_corridor())  # type: ignore[arg-type]
    metrics = source.episodes.metrics()
    assert metrics == {"episodes": 3, "return_mean": 4.0, "length_mean": 4.0}  # 3 × (4 steps + 1 dead row)


def test_same_seed_same_episodes_other_seed_others() -> None:
    for backend in ("sync", "async", "envpool"):
        make = lanes_for("CartPole-v1", 3, backend).make
        policy = Oracle(lambda observation: observation[..., 0].double())
        one, same, other = (EnvSource(make, 10) for _ in range(3))
        for source, seed in ((one, 5), (same, 5), (other, 6)):
            source.restart(seed)
        a, b, c = (source.collect(policy).observation for source in (one, same, other))  # type: ignore[arg-type]
        assert torch.equal(a, b), backend
        assert not torch.equal(a, c), backend
        for source in (one, same, other):
            source.close()


def test_sync_and_async_give_the_same_numbers() -> None:
    policy = Oracle(lambda observation: observation[..., 0].double())
    made = [collections(lanes_for("Acrobot-v1", 3, backend).make, policy, 20, 1)[0] for backend in ("sync", "async")]
    for name in ("observation", "reward", "mask", "terminated", "truncated"):
        assert torch.equal(getattr(made[0], name), getattr(made[1], name)), name


def test_same_step_without_final_observations_is_refused() -> None:
    class Forgetful(gym.vector.VectorWrapper):
        def step(self, actions: np.ndarray) -> tuple:
            return *self.env.step(actions)[:4], {}

    lanes = SyncVectorEnv([Corridor] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(EnvFailure, match="final_obs"):
        collections(lambda seed: Forgetful(lanes), knows_the_corridor(), 10, 1)


@pytest.mark.parametrize(
    ("env", "lanes", "backend"),
    [
        ("CartPole-v1", 8, "sync"),
        ("Acrobot-v1", 8, "envpool"),
        ("HalfCheetah-v5", 1, "sync"),
        ("HalfCheetah-v5", 8, "envpool"),
    ],
)
def test_auto_chooses_what_was_measured_to_be_faster(env: str, lanes: int, backend: str) -> None:
    chosen = lanes_for(env, lanes)
    assert chosen.backend == backend
    assert chosen.reason


def test_auto_gives_slow_environments_a_process_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proximo.sources.backends.step_seconds", lambda one: 0.01)
    assert lanes_for(Corridor, 4).backend == "async"
    assert lanes_for(Corridor, 1).backend == "sync"


def test_disabled_autoreset_with_integer_observations() -> None:
    class Bytes(gym.ObservationWrapper):
        observation_space = gym.spaces.Box(0, 255, (1,), np.uint8)

        def observation(self, observation: np.ndarray) -> np.ndarray:
            return observation.astype(np.uint8)

    for mode in MODES:
        made = [lambda limit=limit: Bytes(Corridor(limit=limit)) for limit in LIMITS]
        make = lambda seed, made=made, mode=mode: SyncVectorEnv(made, autoreset_mode=mode)  # noqa: E731
        for batch in collections(make, knows_the_corridor(), 10, 2):
            assert gae(batch, GAMMA, 0.95).advantage.abs().max() < 1e-6


@pytest.mark.parametrize("said", [None, "SameStep?", 3])
def test_lanes_that_do_not_say_how_they_reset_are_refused(said: object) -> None:
    lanes = SyncVectorEnv([Corridor])
    lanes.metadata = {"autoreset_mode": said}  # type: ignore[dict-item]
    with pytest.raises(EnvFailure, match=r"autoreset_mode.*AutoresetMode\.SAME_STEP"):
        collections(lambda seed: lanes, knows_the_corridor(), 10, 1)


@pytest.mark.parametrize("backend", ["sync", "async", "envpool"])
def test_a_limit_above_the_registered_one_holds_everywhere(backend: str) -> None:
    assert single("Acrobot-v1", 700)().spec.max_episode_steps == 700  # type: ignore[union-attr]
    still = Oracle(lambda observation: observation[..., 0].double())
    [batch] = collections(lanes_for("Acrobot-v1", 2, backend, 700).make, still, 702, 1)
    assert batch.truncated.nonzero()[:, 0].tolist() == [699, 699]


def test_a_maker_that_fails_in_its_worker_alone_is_no_disk_error() -> None:
    home = os.getpid()

    def maker() -> gym.Env:
        if os.getpid() != home:
            raise RuntimeError("no simulator here")
        return Corridor()

    with pytest.raises(EnvFailure):
        collections(lanes_for(maker, 2, "async").make, knows_the_corridor(), 2, 1)


def test_envpool_loads_the_families_that_are_asked_for_and_no_others() -> None:
    """Nor does it lose those that somebody else in the process asks for later."""
    program = """
import sys
from proximo.sources.envpool import EnvPoolLanes, envpool_ids
def loaded():
    libraries = (name.split(".") for name in sys.modules if name.endswith("_envpool"))
    return {parts[1] for parts in libraries} - {"python"}
assert {"Pong-v5", "CartPole-v1", "HalfCheetah-v5"} <= set(envpool_ids()) and not loaded()
EnvPoolLanes("CartPole-v1", 2, 0).close()
assert loaded() == {"classic_control"}, loaded()
assert not any(name.startswith("matplotlib") for name in sys.modules)
import envpool
envpool.make_gymnasium("Catch-v0").close()
assert loaded() == {"classic_control", "toy_text"}, loaded()
import envpool.atari
assert envpool.atari.AtariGymnasiumEnvPool
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
