"""Two halves of the lanes give what all lanes together give, and one steps while the policy chooses for the other."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncState

import proximo
from proximo.batch import Batch
from proximo.errors import ConfigError, EnvFailure, NonFiniteError
from proximo.models.actor_critic import ActorCritic
from proximo.models.network import Network
from proximo.run import session
from proximo.run.config import resolved
from proximo.sources import backends
from proximo.sources.backends import SLOW_STEP, lanes_for
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
    "lstm, separate": dict(memory="lstm", memory_size=8, sequence=6, trunk="separate"),
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


class Pictures(Bytes):
    """Bytes, with episodes as long as the lane's number says."""

    def __init__(self, length: int) -> None:
        self.length = length

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        seen, reward, *_ = super().step(action)
        return seen, reward, False, self.t == self.length, {}


def masked(length: int) -> gym.Env:
    return Masked("observation")


ENVS: dict[str, Any] = {"vector": Truncated, "pictures": Pictures, "masked": masked}


def some(kind: str, mode: AutoresetMode, count: int, seed: int) -> gym.vector.VectorEnv:
    """The lanes from that of this seed on; each has episodes of its own length."""
    lengths = LENGTHS[seed - SEED : seed - SEED + count]
    return Apart(SyncVectorEnv([partial(ENVS[kind], n) for n in lengths], autoreset_mode=mode))


def everything(source: EnvSource | Halves, kind: str, network: Network) -> tuple[list[Batch], list[dict[str, Any]]]:
    """Two collections, and two after a restart, by the same policy with the same noise."""
    torch.manual_seed(0)
    one = ENVS[kind](1)
    policy = ActorCritic(one.observation_space, one.action_space, network)
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
@pytest.mark.parametrize("kind", ENVS)
def test_two_halves_collect_what_all_lanes_together_do(kind: str, network: str, mode: AutoresetMode) -> None:
    shape = Network(hidden=(8,), **NETWORKS[network])
    whole = everything(EnvSource(partial(some, kind, mode, 4), HORIZON), kind, shape)
    halves = everything(Halves(partial(some, kind, mode, 2), HORIZON, 4), kind, shape)
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
    source = Halves(partial(some, "vector", AutoresetMode.NEXT_STEP, 2), 2, 4)
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
        for key in wanted[4].keys() & {"score", "over", "lives"}:
            np.testing.assert_array_equal(wanted[4][key], np.concatenate([made[4][key] for made in found]))
        over += int((wanted[2] | wanted[3]).sum())
    for env in (whole, *halves):
        env.close()
    assert over > 4


def test_runs_in_halves_resume_exactly(tmp_path: Path) -> None:
    settings = dict(hidden=(8,), checkpoint_every=256, backend="async", **QUIET, **SMALL["ppo"]) | dict(eval_episodes=1)
    settings |= dict(frame_stack=2, sequence=8)
    whole, broken = (proximo.train(Bytes, steps=640, out=tmp_path / name, **settings) for name in ("whole", "broken"))
    assert json.loads((whole.folder / "config.json").read_text())["run"]["overlap"] == "on"
    same_after_resuming(whole, broken, Bytes)


class Slow(gym.Env):
    """Takes its time for the third step of all, or raises there; writes down in a file that it was closed."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (5,)), gym.spaces.Discrete(2)

    def __init__(self, file: Path) -> None:
        self.file, self.t = file, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.seed = seed
        return np.zeros(5, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        if self.t == 3:
            if self.seed is not None and self.seed % 4 == 1:
                raise RuntimeError("out of oil")
            time.sleep(0.2)
        return np.zeros(5, np.float32), 0.0, False, False, {}

    def close(self) -> None:
        with self.file.open("a") as file:
            file.write(f"{self.seed}\n")


def test_where_one_half_fails_the_other_is_ended_well(tmp_path: Path) -> None:
    """Its step is under way, and is waited for: whoever has files or processes of its own can put them away."""
    lanes = lanes_for(partial(Slow, tmp_path / "closed"), 4, "async")
    assert lanes.half is not None
    source = Halves(lanes.half, 8, 4)
    source.restart(4)
    policy = ActorCritic(Slow.observation_space, Slow.action_space, Network(hidden=(4,)))
    with pytest.raises(EnvFailure, match="out of oil"):
        source.collect(policy)
    second: Any = source.halves[1].envs
    assert second._state is AsyncState.WAITING_STEP
    source.close()
    assert {"6", "7"} <= set((tmp_path / "closed").read_text().split())
    assert not any(process.is_alive() for process in second.processes)


@pytest.mark.parametrize("name", ["ALE/Pong-v5", "Pong-v5"])
def test_emulators_are_closed_in_the_middle_of_a_step(name: str) -> None:
    lanes = lanes_for(name, 4, options=dict(stack_num=1, episodic_life=True))
    assert lanes.half is not None
    for _ in range(2):
        half = lanes.half(SEED)
        half.reset(seed=SEED)
        half.step_async(np.zeros(2, int))
        half.close()


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
    for asked, words in (
        (dict(backend="sync"), "lanes of the sync backend step in this process: leave it out"),
        (dict(backend="async", envs=3), "an odd number of lanes, 3 in each process, has no halves: leave it out"),
    ):
        with pytest.raises(ConfigError, match=words):
            chosen(Bytes, overlap="on", **asked)


def test_a_stopwatch_decides_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes that were chosen by the time of a step give what one process gives: all lanes act together."""
    for seconds in (0.5 * SLOW_STEP, 2 * SLOW_STEP):
        monkeypatch.setattr(backends, "step_seconds", lambda one: seconds)  # noqa: B023
        assert chosen(Bytes) == "off"
    assert chosen(Bytes, overlap="on") == "on"


def test_a_run_of_before_there_were_halves_goes_on_in_one(tmp_path: Path) -> None:
    settings = dict(hidden=(8,), checkpoint_every=256, backend="async", **QUIET, **SMALL["ppo"]) | dict(eval_episodes=1)
    run = proximo.train(Bytes, steps=320, out=tmp_path / "run", overlap="off", **settings)
    path = run.folder / "config.json"
    config = json.loads(path.read_text())
    del config["run"]["overlap"]
    path.write_text(json.dumps(config))
    assert isinstance(proximo.resume(run.folder, Bytes, steps=640, quiet=True).source, EnvSource)
