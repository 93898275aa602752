"""What holds of every kind of policy: whole lanes are single steps, masks and all, and runs of it resume exactly."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import proximo
from proximo.batch import Batch, tree_map
from proximo.models.actor_critic import ActorCritic, distribution_of
from proximo.models.memory import Transformer
from proximo.models.network import Network
from tests.test_attack import MASKED, stacked
from tests.test_policies import MEMORIES, same_after_resuming
from tests.test_suite import QUIET, SMALL
from tests.toys import Everything, Masked, RecallContinuous

STEPS, LANES = 24, 32


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("sequence", [24, 6])
@torch.no_grad()
def test_whole_lanes_give_masked_choices_the_probabilities_that_single_steps_gave(memory: str, sequence: int) -> None:
    torch.manual_seed(0)
    network = Network(**MEMORIES[memory], memory_size=8, hidden=(8,), sequence=sequence)
    policy = ActorCritic(MASKED, gym.spaces.Discrete(4), network)
    for parameter in policy.parameters():
        parameter.copy_(0.5 * torch.randn_like(parameter))
    allowed = torch.rand(STEPS, LANES, 4) < 0.6
    allowed[..., 1] |= ~allowed.any(-1)
    seen = {"seen": torch.randn(STEPS, LANES, 5), "action_mask": allowed.to(torch.int8)}
    start, carried = torch.rand(STEPS, LANES) < 0.2, policy.initial(LANES)
    kept, said, values = [], [], []
    for t in range(STEPS):
        kept.append(carried)
        row = tree_map(lambda x, t=t: x[t], seen)
        acting, judging, carried = policy._step(row, carried, start[t])
        said.append(distribution_of(policy.head, policy.actor(acting), row).logp_all)
        values.append(policy.critic(judging).squeeze(-1))
    batch = Batch(observation=seen, action=allowed.to(torch.int64).argmax(-1), start=start, mask=start | ~start)
    whole = policy.evaluate(batch.replace(memory=stacked(kept)))
    assert torch.stack(said)[allowed].std() > 0.3, "else every probability would do"
    torch.testing.assert_close(whole.distribution.logp_all[allowed], torch.stack(said)[allowed], rtol=0, atol=1e-5)
    assert (whole.distribution.logp_all[~allowed].exp() == 0).all()
    torch.testing.assert_close(whole.value, torch.stack(values), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_transformer_of_a_size_that_is_used_gives_whole_lanes_what_it_gave_step_by_step() -> None:
    """Its weights grown as by training: what rounding leaves is 10⁻⁵ of what comes out."""
    torch.manual_seed(0)
    core = Transformer(64, 128, window=32, layers=2)
    for parameter in core.parameters():
        parameter.mul_(2)
    inputs, start, state = torch.randn(96, 4, 64), torch.rand(96, 4) < 0.03, core.initial(4)
    whole, _ = core(inputs, state, start)
    singly = []
    for row, begins in zip(inputs.split(1), start.split(1), strict=True):
        output, state = core(row, state, begins)
        singly.append(output)
    assert (whole - torch.cat(singly)).abs().max() <= 1e-5 * whole.abs().max()


class Bytes(gym.Env):
    """A picture whose bright half is to be named."""

    observation_space, action_space = gym.spaces.Box(0, 255, (16, 16, 1), np.uint8), gym.spaces.Discrete(2)

    def _seen(self) -> np.ndarray:
        self.side, picture = int(self.np_random.integers(2)), np.zeros((16, 16, 1), np.uint8)
        picture[:, 8 * self.side : 8 * self.side + 8] = 200
        return picture

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, self.t = float(action == self.side), self.t + 1
        return self._seen(), reward, False, self.t == 5, {}


RUNS: dict[str, tuple[Any, dict[str, Any]]] = {
    "squashed": (RecallContinuous, dict(distribution="squashed")),
    "deviations of the state": (RecallContinuous, dict(state_std=True, layer_norm=True, betas=(0.99, 0.99))),
    "transformer": (RecallContinuous, dict(memory="transformer", memory_size=8, memory_window=5, sequence=8)),
    "a stack and a memory": (RecallContinuous, dict(frame_stack=3, memory="lstm", memory_size=8, sequence=8)),
    "masked": (partial(Masked, "info"), {}),
    "masked, transformer": (
        partial(Masked, "observation"),
        dict(memory="transformer", memory_size=8, memory_window=5, sequence=8),
    ),
    "bfloat16": (Bytes, dict(precision="bfloat16")),
    "a stack of images": (Bytes, dict(frame_stack=2, sequence=8)),
    "everything, separate": (Everything, dict(trunk="separate")),
}


@pytest.mark.parametrize("kind", RUNS)
def test_runs_of_every_kind_of_policy_resume_exactly(kind: str, tmp_path: Path) -> None:
    env, network = RUNS[kind]
    settings = dict(hidden=(8,), checkpoint_every=256, **QUIET, **SMALL["ppo"], **network) | dict(eval_episodes=1)
    whole, broken = (proximo.train(env, steps=640, out=tmp_path / name, **settings) for name in ("whole", "broken"))
    same_after_resuming(whole, broken, env)
