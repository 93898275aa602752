"""Stacks of frames: those of Gymnasium, whatever the lanes' episodes do; each frame is kept once."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from proximo.batch import leaves_of
from proximo.errors import UnsupportedSpace
from proximo.models.actor_critic import ActorCritic
from proximo.models.encoders import Flat
from proximo.models.frames import Frames
from proximo.models.network import Network
from proximo.run.agent import Agent
from proximo.sources.envs import EnvSource
from proximo.updaters.adam import Adam
from tests.toys import Corridor, Everything


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("length", [1, 3, 10])
def test_stacks_are_those_of_gymnasium(k: int, length: int) -> None:
    """Three lanes whose episodes end at different times, in pieces that begin in the middle of one."""
    make = [partial(lambda limit: FrameStackObservation(Corridor(limit=limit), k), limit) for limit in (3, 2, 5)]
    envs, frames = gym.vector.SyncVectorEnv(make), Frames(Corridor().observation_space, k)
    seen, fresh, ended = envs.reset(seed=0)[0], np.ones(3, bool), np.zeros(3, bool)
    state = frames.initial(3, torch.device("cpu"))
    for _ in range(20 // length):
        rows, starts = list[np.ndarray](), list[np.ndarray]()
        for _ in range(length):
            rows.append(seen.copy())
            starts.append(fresh)
            seen, _, terminated, truncated, _ = envs.step(np.zeros(3, int))
            # the row after an end is dead and holds the final observation; the one after that begins an episode
            fresh, ended = ended, terminated | truncated
        wanted = torch.from_numpy(np.stack(rows))
        stacks, state = frames(wanted[:, :, -1], state, torch.from_numpy(np.stack(starts)))
        torch.testing.assert_close(stacks, wanted, rtol=0, atol=0)
    envs.close()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 5),
    st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=1, max_size=9),
    st.lists(st.integers(0, 4), min_size=2, max_size=2),
)
def test_stacks_by_walking_back(k: int, starts: list[list[bool]], known: list[int]) -> None:
    """From each row back, one frame at a time, no further than where its episode began, or than anything is known."""
    start, steps = torch.tensor(starts), len(starts)
    known = [min(n, k - 1) for n in known]
    numbers = torch.arange((steps + k - 1) * 2).view(-1, 2, 1)
    frames = Frames(spaces.MultiDiscrete([100]), k)
    past = (numbers[: k - 1].transpose(0, 1), torch.tensor(known))
    found, (after, counted) = frames(numbers[k - 1 :], past, start)
    for lane in range(2):
        for t in range(steps):
            row, stack, age = t, list[int](), 0
            for _ in range(k):
                stack.insert(0, int(numbers[row + k - 1, lane, 0]))
                if not (row >= 0 and starts[row][lane]) and row > -known[lane]:
                    row, age = row - 1, age + 1
            assert found[t, lane, :, 0].tolist() == stack
        assert counted[lane] == min(age + 1, k - 1)
        assert after[lane, :, 0].tolist() == numbers[steps:, lane, 0].tolist()


SHOWN = spaces.Dict(
    picture=spaces.Box(0, 255, (36, 36, 3), np.uint8),
    gray=spaces.Box(0, 255, (36, 36), np.uint8),
    inner=spaces.Tuple([spaces.Discrete(3, start=-1), spaces.MultiDiscrete([2, 4], start=[1, 2])]),
    bits=spaces.MultiBinary(3),
    numbers=spaces.Box(-np.inf, np.inf, (2,)),
)


def test_every_leaf_is_stacked() -> None:
    """What the stacks hold is of the stacks' space, and the encoders take it."""
    frames, rng = Frames(SHOWN, 3), [SHOWN.sample() for _ in range(5)]
    policy = ActorCritic(SHOWN, spaces.Discrete(2), Network(frame_stack=3, hidden=(8,), normalize_observation=True))
    agent = Agent(policy, SHOWN, spaces.Discrete(2))
    rows = [agent.rows(observation)[0] for observation in rng]
    state, start = frames.initial(1, torch.device("cpu")), torch.zeros(1, 1, dtype=torch.bool)
    for row in rows:
        lead = {key: part.unsqueeze(0) for key, part in row.items() if key != "inner"}
        lead["inner"] = tuple(part.unsqueeze(0) for part in row["inner"])
        stack, state = frames(lead, state, start)
    for key, space in frames.space.spaces.items():
        parts = list(zip(space.spaces, stack["inner"], strict=True)) if key == "inner" else [(space, stack[key])]
        for leaf, value in parts:
            assert leaf.contains(value[0, 0].numpy().astype(leaf.dtype)), key
    torch.testing.assert_close(stack["gray"][0, 0], torch.stack([row["gray"][0] for row in rows[2:]]))
    assert policy.trunk.encoder.leaves["/picture"].image == (9, 36, 36)
    assert policy.trunk.encoder.leaves["/gray"].image == (3, 36, 36)


@pytest.mark.parametrize("channels", ["auto", "first", "last"])
@pytest.mark.parametrize(("k", "side"), [(4, 20), (8, 7)])
def test_stacks_of_gray_frames_have_no_colours(k: int, side: int, channels: Any) -> None:
    """Wherever colours are said to be, and however many frames there are: the frames are what is looked through."""
    space = spaces.Box(0, 255, (side, side), np.uint8)
    policy = ActorCritic(space, spaces.Discrete(2), Network(frame_stack=k, channels=channels, hidden=(8,)))
    assert (policy.trunk.encoder.last, policy.trunk.encoder.image) == (False, (k, side, side))
    coloured = spaces.Box(0, 255, (side, side, 3), np.uint8)
    if channels != "first":
        policy = ActorCritic(coloured, spaces.Discrete(2), Network(frame_stack=k, channels=channels, hidden=(8,)))
        assert (policy.trunk.encoder.last, policy.trunk.encoder.image) == (True, (3 * k, side, side))


def test_a_stack_of_rows_of_bytes_is_no_image() -> None:
    """A game's memory, for example: rows are kept as float32, and so are stacks of them."""
    space = spaces.Box(0, 255, (128,), np.uint8)
    policy = ActorCritic(space, spaces.Discrete(2), Network(frame_stack=4, normalize_observation=True, hidden=(8,)))
    assert isinstance(policy.trunk.encoder, Flat)
    assert Agent(policy, space, spaces.Discrete(2)).act(space.sample()) in (0, 1)


def test_frames_are_kept_once() -> None:
    """A collection holds each frame once, and k − 1 before each sequence."""
    space = spaces.Box(0, 255, (40, 40), np.uint8)

    class Screen(gym.Env):
        observation_space, action_space = space, spaces.Discrete(2)

        def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
            return np.zeros((40, 40), np.uint8), {}

        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            return np.ones((40, 40), np.uint8), 0.0, False, False, {}

    source = EnvSource(lambda seed: gym.vector.SyncVectorEnv([Screen] * 2), 32)
    source.restart(0)
    policy = ActorCritic(space, spaces.Discrete(2), Network(frame_stack=4, sequence=16))
    batch = source.collect(policy)
    source.close()
    assert batch.observation.shape == (32, 2, 40, 40)
    assert batch.memory[0][0].shape == (2, 2, 3, 40, 40)
    kept = [leaf for leaf in leaves_of(vars(batch)) if leaf.dtype == torch.uint8]
    assert sum(leaf.numel() for leaf in kept) == (32 + 2 * 3) * 2 * 40 * 40


class Noise(gym.Env):
    """Shows any picture."""

    observation_space, action_space = spaces.Box(0, 255, (40, 40), np.uint8), spaces.Discrete(5)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=kwargs.get("seed"))
        return self.picture(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.picture(), 0.0, False, False, {}

    def picture(self) -> np.ndarray:
        return self.np_random.integers(0, 256, (40, 40), dtype=np.uint8)


class Watched(ActorCritic):
    """A policy whose noise can be looked at."""

    def noise(self, *shape: int) -> Tensor:
        self.drawn = super().noise(*shape)
        return self.drawn


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_that_changed_are_cast_anew(precision: Any) -> None:
    """What a collection keeps of them is gone in the next one: it acts as its own weights say."""
    source = EnvSource(lambda seed: gym.vector.SyncVectorEnv([Noise] * 2), 32)
    source.restart(0)
    policy = Watched(Noise.observation_space, Noise.action_space, Network(images="nature", precision=precision))
    optimizer, agreement = Adam(policy), list[float]()  # it changes them in place, as training does
    for _ in range(3):
        optimizer.state["vector"].normal_(0, 0.1)
        batch, drawn = source.collect(policy), policy.drawn
        fresh = copy.deepcopy(policy)  # of whose weights nothing can have been kept
        agreement.append((fresh.act(batch.observation, drawn)[0] == batch.action).float().mean().item())
    source.close()
    assert min(agreement) > 0.9, "a rounding may decide one of 64 otherwise"


def test_the_running_statistics_are_those_of_stacks() -> None:
    source = EnvSource(lambda seed: gym.vector.SyncVectorEnv([Corridor] * 2), 16)
    source.restart(0)
    space = Corridor().observation_space
    policy = ActorCritic(space, spaces.Discrete(2), Network(frame_stack=2, sequence=4, normalize_observation=True))
    batch = source.collect(policy)
    source.close()
    policy.observe(batch)
    now, start = batch.observation[..., 0], batch.start
    before = torch.cat([now[:1], now[:-1]])
    stacks = torch.stack([torch.where(start, now, before), now], -1)[batch.mask]
    torch.testing.assert_close(policy.trunk.encoder.vector.moments.mean.float(), stacks.mean(0))


def test_texts_are_not_stacked() -> None:
    with pytest.raises(UnsupportedSpace, match=r"the leaf /inner/0 .* cannot be stacked: leave frame_stack at 1"):
        ActorCritic(Everything.observation_space, spaces.Discrete(2), Network(frame_stack=2))


def test_stacks_of_images_are_not_stacked_again() -> None:
    """They would be a long vector, and no convolution would see them."""
    space = spaces.Box(0, 255, (4, 20, 20, 3), np.uint8)
    with pytest.raises(UnsupportedSpace, match="a stack of images before it is stacked: leave frame_stack at 1"):
        ActorCritic(space, spaces.Discrete(2), Network(frame_stack=2))
    ActorCritic(space, spaces.Discrete(2), Network(frame_stack=2, images="numbers"))
