"""Simulators with rsl_rl's VecEnv interface: no lane's episodes merge, and truncation bootstraps as documented."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

import proximo
from proximo.advantages import gae
from proximo.run.checkpoint import all_of
from proximo.sources.tensors import TensorEnv
from proximo.sources.vecenv import VecEnvLanes
from tests.conftest import SMALL
from tests.test_envs import knows_the_corridor
from tests.test_tensors import collected
from tests.toys import GAMMA, corridor_value


class Simulator:
    """A corridor in which each lane truncates at its own time, all its buffers written in place, as simulators do."""

    def __init__(self, limits: list[int], finals: bool = False, older: bool = False, group: str = "policy") -> None:
        self.num_envs, self.num_actions, self.device = len(limits), 2, torch.device("cpu")
        self.max_episode_length = torch.tensor(limits)
        self.episode_length_buf = torch.zeros(len(limits), dtype=torch.long)
        self.position, self.reward = torch.zeros(len(limits), 1), torch.zeros(len(limits))
        self.finals, self.older, self.group = finals, older, group

    def get_observations(self) -> Any:
        seen = {self.group: self.position, "critic": torch.zeros(self.num_envs, 9)}
        return (self.position, {}) if self.older else seen

    def step(self, actions: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Any]]:
        assert actions.shape[0] == self.num_envs
        self.position += 1
        self.episode_length_buf += 1
        self.reward.fill_(1)
        fallen, late = self.position[:, 0] == 7, self.episode_length_buf == self.max_episode_length
        extras = {"time_outs": late & ~fallen, "log": {"/reward": 1.0}}
        if self.finals:
            extras["final_obs"] = {self.group: self.position.clone()}
        done = fallen | late
        self.position[done], self.episode_length_buf[done] = 0, 0
        seen = self.get_observations()
        return seen[0] if self.older else seen, self.reward, done.long(), extras

    def __getattr__(self, name: str) -> Any:
        if name == "reset" and self.older:
            return self.begin
        raise AttributeError(name)

    def begin(self) -> Any:
        self.position.zero_()
        self.episode_length_buf.zero_()
        return self.get_observations()


LIMITS = [3, 5, 7, 9]


@pytest.mark.parametrize("finals", [False, True])
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("horizon", [1, 7, 16])
def test_truncation_bootstraps_as_documented(horizon: int, older: bool, finals: bool) -> None:
    env = VecEnvLanes(Simulator(LIMITS, finals, older))
    assert isinstance(env, TensorEnv)
    batches = collected(env, knows_the_corridor(), horizon, 48 // horizon)
    for batch in batches:
        position = batch.observation.squeeze(-1).double()
        known = ~batch.truncated if not finals else torch.ones_like(batch.truncated)
        right = known & ~batch.terminated
        torch.testing.assert_close(batch.next_value[right], corridor_value(position + 1)[right])
        early = batch.truncated & ~known  # from one step too early, as the interface leaves it
        torch.testing.assert_close(batch.next_value[early], corridor_value(position)[early])
        assert (batch.terminated == (position == 6)).all()
        if finals:
            assert gae(batch, GAMMA, 0.95).advantage.abs().max() < 1e-6
        assert (batch.reward == 1).all()
    whole = {name: torch.cat([getattr(b, name) for b in batches]) for name in ("truncated", "terminated", "start")}
    assert whole["truncated"].any(0).tolist() == [True, True, False, False]
    assert whole["terminated"].any(0).tolist() == [False, False, True, True]
    assert torch.equal(whole["start"][1:], (whole["truncated"] | whole["terminated"])[:-1])
    walked = torch.cat([b.observation for b in batches]).squeeze(-1)
    for lane, length in enumerate([3, 5, 7, 7]):
        assert walked[:, lane].tolist() == [k % length for k in range(len(walked))]


@pytest.mark.parametrize("group", ["policy", "actor", "camera"])
def test_it_trains_and_goes_on(group: str, tmp_path: Path) -> None:
    def made() -> VecEnvLanes:
        return VecEnvLanes(Simulator(LIMITS, group=group), group if group == "camera" else None)

    settings: dict[str, Any] = SMALL | dict(envs=4, quiet=True, normalize_observation=True)
    run = proximo.train(made(), **settings, out=tmp_path / "run")
    assert run.step == 512
    assert run.score is None
    assert run.metrics["return_mean"] == pytest.approx(5, abs=1)
    assert run.agent.action_space == gym.spaces.Box(-float("inf"), float("inf"), (2,))
    assert run.agent.act([3.0]).shape == (2,)
    assert proximo.resume(run.folder, env=made(), steps=1024, quiet=True).step == 1024
    with pytest.raises(proximo.ConfigError, match="evaluation needs single environments"):
        proximo.evaluate(run.folder, env=made())


def test_one_that_can_be_reset_resumes_exactly(tmp_path: Path) -> None:
    settings: dict[str, Any] = SMALL | dict(envs=4, quiet=True, checkpoint_every=128)
    whole = proximo.train(VecEnvLanes(Simulator(LIMITS, older=True)), **settings, out=tmp_path / "whole")
    broken = proximo.train(VecEnvLanes(Simulator(LIMITS, older=True)), **settings, out=tmp_path / "broken")
    for late in all_of(broken.folder)[2:]:
        shutil.rmtree(late)
    proximo.resume(broken.folder, env=VecEnvLanes(Simulator(LIMITS, older=True)), quiet=True)
    assert len(all_of(whole.folder)) == 5
    for one, other in zip(all_of(whole.folder), all_of(broken.folder), strict=True):
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_a_simulator_in_inference_mode_is_learned_from(tmp_path: Path) -> None:
    simulator = Simulator(LIMITS)
    simulator.step = torch.inference_mode()(simulator.step)  # type: ignore[method-assign]
    simulator.position, simulator.reward = simulator.position.clone(), simulator.reward.clone()
    run = proximo.train(VecEnvLanes(simulator), **SMALL | dict(envs=4, quiet=True), out=tmp_path / "run")
    assert run.step == 512


def test_without_time_outs_every_end_is_a_termination() -> None:
    simulator = Simulator([3, 3])
    step = simulator.step
    simulator.step = lambda actions: (*step(actions)[:3], {})  # type: ignore[method-assign]
    [batch] = collected(VecEnvLanes(simulator), knows_the_corridor(), 16, 1)
    assert not batch.truncated.any()
    assert batch.terminated.sum() == 10


def test_a_group_that_is_not_there_is_told() -> None:
    with pytest.raises(proximo.EnvFailure, match="no group policy or actor, but camera, critic: name one as `group`"):
        VecEnvLanes(Simulator([3], group="camera"))
    with pytest.raises(proximo.EnvFailure, match="no group lidar, but policy, critic"):
        VecEnvLanes(Simulator([3]), "lidar")
