"""The Python API trains, resumes and loads what it says it takes, as a user would see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import proximo
from proximo.errors import ConfigError
from proximo.models.network import Network
from proximo.run import session
from tests.conftest import SMALL
from tests.toys import RecallContinuous, Toy


@pytest.mark.parametrize("env", ["CartPole-v1", Toy, lambda: Toy(), lambda: gym.make("CartPole-v1")])
def test_python_trains_an_id_a_class_and_a_function(env: Any, tmp_path: Path) -> None:
    run = proximo.train(env, **SMALL, quiet=True, out=tmp_path / "run")
    assert run.folder == tmp_path / "run"
    assert 512 - 64 < run.step <= 512
    assert run.score is not None
    assert len(run.score.returns) == 1
    assert run.score.mean == (20 if run.agent.observation_space.shape == (5,) else run.score.lengths[0])
    assert run.agent.action_space.contains(run.agent.act(run.agent.observation_space.sample()))
    longer = proximo.resume(run.folder, env=env, steps=640, quiet=True)
    assert run.step < longer.step <= 640


@pytest.mark.parametrize("mode", AutoresetMode)
def test_python_trains_a_vector_environment_of_any_mode(mode: AutoresetMode, tmp_path: Path) -> None:
    lanes = SyncVectorEnv([Toy] * 2, autoreset_mode=mode)
    run = proximo.train(lanes, **SMALL, quiet=True, out=tmp_path / "run")
    dead = run.update * 64 - run.step
    assert dead == (2 * (256 // 21) if mode == AutoresetMode.NEXT_STEP else 0)
    assert run.score is None  # no single environment to evaluate in
    assert run.metrics["length_mean"] == run.metrics["return_mean"] == 20
    assert run.agent.act(np.zeros((2, 5))).shape == (2,)
    lanes.reset(seed=1)  # it is still the caller's, and open
    lanes.close()


ACTIONS = [
    *(spaces.Discrete(4), spaces.Discrete(3, start=-1), spaces.Box(-2, 2, (3,)), spaces.Box(0, 9, (2, 2), np.int64)),
    *(spaces.MultiDiscrete([2, 3], np.int32), spaces.MultiDiscrete([[2, 3], [4, 5]]), spaces.MultiBinary(3)),
    *(spaces.MultiBinary((2, 2)), spaces.Box(np.array([0, -np.inf], np.float32), np.array([5, 1], np.float32))),
]


@pytest.mark.parametrize("space", ACTIONS, ids=str)
def test_the_loaded_agent_acts_as_the_trained_one_within_the_space(space: gym.Space, tmp_path: Path) -> None:
    run = proximo.train(lambda: Toy(space), **SMALL, lr=0.05, quiet=True, out=tmp_path / "run")
    loaded = proximo.load(run.folder)
    assert loaded.action_space == space
    observations = np.random.default_rng(0).uniform(-1, 1, (50, 5)).astype(np.float32)
    many = loaded.act(observations)
    np.testing.assert_array_equal(many, run.agent.act(observations))
    for observation, action in zip(observations, many, strict=True):
        np.testing.assert_allclose(loaded.act(observation), action, rtol=1e-5)
        assert space.contains(loaded.act(observation))
        assert space.contains(loaded.act(observation, deterministic=False))
    torch.manual_seed(0)
    drawn = loaded.act(observations, deterministic=False)
    torch.manual_seed(0)
    np.testing.assert_array_equal(drawn, run.agent.act(observations, deterministic=False))
    assert len({action.tobytes() for action in drawn}) > 1


def test_training_and_loading_leave_the_callers_generators_alone(trained: Path, tmp_path: Path) -> None:
    def draws(between: Callable[[], object]) -> list[float]:
        torch.manual_seed(0)
        np.random.seed(0)
        between()
        return [float(torch.rand(())), np.random.rand()]

    untouched = draws(lambda: None)
    assert draws(lambda: proximo.train(Toy, **SMALL, quiet=True, out=tmp_path / "run")) == untouched
    assert draws(lambda: proximo.load(trained)) == untouched


@pytest.mark.parametrize("wrong", [dict(steps=1e3), dict(steps="1000"), dict(device="tpu"), dict(steps=0)])
def test_resume_refuses_what_train_would_and_harms_nothing(wrong: dict[str, Any], run: Path) -> None:
    before = (run / "config.json").read_bytes()
    with pytest.raises(proximo.ConfigError):
        proximo.resume(run, **wrong)
    assert (run / "config.json").read_bytes() == before


class Moody(Toy):
    """It draws from generators that are nobody's own."""

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, float(np.random.rand() + torch.rand(())), *rest


def test_evaluation_is_reproducible_even_so(tmp_path: Path) -> None:
    run = proximo.train(Moody, **SMALL, quiet=True, out=tmp_path / "run")
    one, two = (proximo.evaluate(run.folder, 3, env=Moody).returns for _ in range(2))
    assert one == two
    assert len(set(one)) > 1


def test_an_observation_too_large_for_float32_is_refused(tmp_path: Path) -> None:
    agent = proximo.train(Toy, **SMALL, quiet=True, out=tmp_path / "run").agent
    with pytest.raises(proximo.NonFiniteError):
        agent.act(np.full(5, 1e300))
    assert "Agent" in repr(agent)


def test_a_preset_says_for_which_algorithm_it_was_made() -> None:
    [note] = session.preset_config("CartPole-v1", "trpo", "cartpole")[1]
    assert note.startswith("preset cartpole (as asked; steps, gamma of it, the rest is made for ppo): ")
    [note] = session.preset_config("CartPole-v1", "ppo", "cartpole")[1]
    assert "made for" not in note


def test_the_first_deviation_is_a_setting(tmp_path: Path) -> None:
    settings = dict(steps=64, envs=2, horizon=32, lr=1e-30, log_std_init=-1.5)
    run = proximo.train(RecallContinuous, **settings, out=tmp_path / "run", quiet=True)
    torch.testing.assert_close(run.policy.head.log_std, torch.full((1,), -1.5))
    with pytest.raises(ConfigError, match="log_std_init is nan"):
        Network(log_std_init=float("nan"))
