"""Two halves of the lanes give what all lanes together give, and one steps while the policy chooses for the other."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import proximo
from proximo.batch import Batch
from proximo.errors import ConfigError, EnvFailure, NonFiniteError
from proximo.models.actor_critic import ActorCritic
from proximo.models.network import Network
from proximo.run import session
from proximo.run.config import resolved
from proximo.sources.backends import lanes_for
from proximo.sources.envs import EnvSource
from proximo.sources.halves import Halves
from tests.test_lanes import Bytes
from tests.test_policies import MODES, Truncated, same_after_resuming
from tests.test_suite import QUIET, SMALL
from tests.toys import Masked, Recall

LENGTHS, SEED, HORIZON = (1, 3, 7, 50), 5, 24
NETWORKS: dict[str, dict[str, Any]] = {
    "no memory": {},
    "lstm": dict(memory="lstm", memory_size=8, sequence=6),
    "stack": dict(frame_stack=4, sequence=6),
}


class Apart(gym.vector.VectorWrapper):
    """Lanes that step when they are waited for; what happens is written down."""

    def __init__(self, env: gym.vector.VectorEnv, name: int = 0, told: list[Any] | None = None) -> None:
        super().__init__(env)
        self.name, self.told = name, [] if told is None else told

    def step_async(self, actions: Any) -> None:
        self.told.append(("asked", self.name))
        self.actions = np.array(actions)

    def step_wait(self) -> Any:
        self.told.append(("waited", self.name))
        return self.env.step(self.actions)


def some(mode: AutoresetMode, count: int, seed: int) -> gym.vector.VectorEnv:
    """The lanes from that of this seed on; each has episodes of its own length."""
    lengths = LENGTHS[seed - SEED : seed - SEED + count]
    return Apart(SyncVectorEnv([partial(Truncated, n) for n in lengths], autoreset_mode=mode))


def everything(source: EnvSource | Halves, network: Network) -> tuple[list[Batch], list[dict[str, Any]]]:
    """Two collections, and two after a restart, by the same policy with the same noise."""
    torch.manual_seed(0)
    policy = ActorCritic(gym.spaces.Box(-1, 1, (5,)), gym.spaces.Box(-1, 1, (2,)), network)
    batches, counted = [], []
    for _ in range(2):
        source.restart(SEED)
        for _ in range(2):
            batches.append(source.collect(policy))
            counted.append(source.episodes.metrics())
    source.close()
    return batches, counted


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("network", NETWORKS)
def test_two_halves_collect_what_all_lanes_together_do(network: str, mode: AutoresetMode) -> None:
    shape = Network(hidden=(8,), **NETWORKS[network])
    whole = everything(EnvSource(partial(some, mode, 4), HORIZON), shape)
    halves = everything(Halves(partial(some, mode, 2), HORIZON, 4), shape)
    assert whole[1] == halves[1]
    for one, other in zip(whole[0], halves[0], strict=True):
        assert list(vars(one)) == list(vars(other))
        for wanted, found in zip(one.leaves(), other.leaves(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert whole[0][0].mask.shape == (HORIZON, 4)


def test_one_half_steps_while_the_other_is_chosen_for() -> None:
    told = list[Any]()

    def make(seed: int) -> Apart:
        return Apart(SyncVectorEnv([partial(Truncated, 3)] * 2), (seed - SEED) // 2, told)

    class Telling(ActorCritic):
        def act(self, *args: Any) -> Any:
            told.append("chosen")
            return super().act(*args)

    source = Halves(make, 3, 4)
    policy = Telling(gym.spaces.Box(-1, 1, (5,)), gym.spaces.Box(-1, 1, (2,)), Network(hidden=(4,)))
    source.restart(SEED)
    source.collect(policy)
    told.clear()
    source.collect(policy)
    source.close()
    begin = ["chosen", ("asked", 0), "chosen", ("asked", 1)]
    step = [("waited", 0), "chosen", ("asked", 0), ("waited", 1), "chosen", ("asked", 1)]
    assert told == begin + step * 2 + [("waited", 0), ("waited", 1)]


def test_the_policy_has_half_of_the_threads_while_environments_step() -> None:
    seen = list[int]()

    class Counting(ActorCritic):
        def act(self, *args: Any) -> Any:
            seen.append(torch.get_num_threads())
            return super().act(*args)

    before = torch.get_num_threads()
    source = Halves(partial(some, AutoresetMode.NEXT_STEP, 2), 2, 4)
    source.restart(SEED)
    torch.set_num_threads(2)
    try:
        source.collect(Counting(gym.spaces.Box(-1, 1, (5,)), gym.spaces.Box(-1, 1, (2,)), Network(hidden=(4,))))
        assert seen[-4:] == [1] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    source.close()


class Wrong(gym.Env):
    """Returns NaN, or raises, in its third step."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (5,)), gym.spaces.Box(-1, 1, (2,))

    def __init__(self, how: str) -> None:
        self.how, self.t = how, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(5, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        if self.t == 3 and self.how == "raise":
            raise RuntimeError("out of oil")
        bad = np.nan if self.t == 3 and self.how == "nan" else 0.0
        return np.full(5, bad, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("nan", NonFiniteError, r"observation/?\[0\] is nan in lane 3 at step 3"),
        ("raise", EnvFailure, r"the environment's step\(\) raised RuntimeError after 2 steps: out of oil"),
    ],
)
def test_a_failure_in_the_second_half_is_told_as_that_of_its_lane(how: str, error: Any, words: str) -> None:
    def make(seed: int) -> Apart:
        return Apart(SyncVectorEnv([partial(Wrong, how if seed + i == SEED + 3 else "well") for i in range(2)]))

    source = Halves(make, 8, 4)
    source.restart(SEED)
    with pytest.raises(error, match=words):
        source.collect(ActorCritic(Wrong.observation_space, Wrong.action_space, Network(hidden=(4,))))
    source.close()


@pytest.mark.parametrize("name", ["ALE/Breakout-v5", "Breakout-v5", "CartPole-v1"])
def test_games_are_the_same_in_halves(name: str) -> None:
    """Frame by frame, whatever threads step them: each lane has the seed that it has among all lanes."""
    options = {} if name == "CartPole-v1" else dict(stack_num=1, episodic_life=True)
    lanes = lanes_for(name, 4, "async" if name == "CartPole-v1" else "auto", options=options)
    assert lanes.half is not None
    whole, halves = lanes.make(SEED), [lanes.half(SEED + first) for first in (0, 2)]
    first, *_ = whole.reset(seed=SEED)
    rows = [half.reset(seed=SEED + 2 * i)[0] for i, half in enumerate(halves)]
    np.testing.assert_array_equal(first, np.concatenate(rows))
    rng, over = np.random.default_rng(0), 0
    for _ in range(300):
        action = rng.integers(2, size=4)
        wanted = whole.step(action)
        for half, part in zip(halves, action.reshape(2, 2), strict=True):
            half.step_async(part)
        found = [half.step_wait() for half in halves]
        for i in range(4):
            np.testing.assert_array_equal(wanted[i], np.concatenate([made[i] for made in found]))
        over += int((wanted[2] | wanted[3]).sum())
    for env in (whole, *halves):
        env.close()
    assert over > 4


def test_runs_in_halves_resume_exactly_and_see_what_runs_in_one_do(tmp_path: Path) -> None:
    settings = dict(hidden=(8,), checkpoint_every=256, backend="async", **QUIET, **SMALL["ppo"]) | dict(eval_episodes=1)
    settings |= dict(frame_stack=2, sequence=8)
    whole, broken = (proximo.train(Bytes, steps=640, out=tmp_path / name, **settings) for name in ("whole", "broken"))
    assert json.loads((whole.folder / "config.json").read_text())["run"]["overlap"] == "on"
    same_after_resuming(whole, broken, Bytes)
    alone = proximo.train(Bytes, steps=640, out=tmp_path / "alone", overlap="off", **settings)
    assert alone.metrics["episodes"] == whole.metrics["episodes"] > 50
    assert alone.metrics["return_mean"] == pytest.approx(whole.metrics["return_mean"], abs=0.3)


def chosen(env: Any, **settings: Any) -> str:
    config = resolved("toy", "ppo", "none", SMALL["ppo"] | settings, registered=False)
    return session.fitted(env, config)[0].run.overlap


def test_lanes_are_halved_where_an_image_network_acts_and_they_can_be() -> None:
    assert chosen(Bytes, backend="async") == "on"
    assert chosen(Bytes, backend="async", overlap="off") == "off"
    assert chosen(Bytes, backend="sync") == "off"
    assert chosen(Bytes, backend="async", images="numbers") == "off"
    assert chosen(Recall, backend="async") == "off"
    assert chosen(Recall, backend="async", overlap="on") == "on"
    assert chosen(partial(Masked, "info"), backend="async", overlap="on") == "on"
    for asked in (dict(backend="sync"), dict(backend="async", envs=1)):
        with pytest.raises(ConfigError, match=r"overlap is on, but .* leave it out, or take the async backend"):
            chosen(Bytes, overlap="on", **asked)


def test_a_run_of_before_there_were_halves_goes_on_in_one(tmp_path: Path) -> None:
    settings = dict(hidden=(8,), checkpoint_every=256, backend="async", **QUIET, **SMALL["ppo"]) | dict(eval_episodes=1)
    run = proximo.train(Bytes, steps=320, out=tmp_path / "run", overlap="off", **settings)
    path = run.folder / "config.json"
    config = json.loads(path.read_text())
    del config["run"]["overlap"]
    path.write_text(json.dumps(config))
    assert isinstance(proximo.resume(run.folder, Bytes, steps=640, quiet=True).source, EnvSource)
