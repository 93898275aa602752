"""Environments whose every value is known, and one that does wrong what it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from proximo.batch import Batch, tree_map
from proximo.policy import Policy
from proximo.sources.tensors import Transition

GAMMA = 0.9


class Corridor(gym.Env):
    """A walk along positions 0, 1, 2, …: reward 1 a step; terminated on reaching `end`, truncated after `limit` steps.

    Episode k of an environment starts at position k % 3, so that no two episodes look alike. Truncation says nothing
    of the state: V(s) = 1 + γ + … + γ^(end − s − 1) wherever one stands, 0 at the end.
    """

    def __init__(self, end: int = 7, limit: int = 5) -> None:
        self.observation_space = gym.spaces.Box(-1, 100, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.end, self.limit, self.episode = end, limit, -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.taken = self.episode + 1, 0
        self.position = self.episode % 3
        return np.array([self.position], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position, self.taken = self.position + 1, self.taken + 1
        terminated, truncated = self.position == self.end, self.taken == self.limit
        return np.array([self.position], np.float32), 1.0, terminated, truncated, {}


def corridor_value(position: Any, end: int = 7) -> Any:
    """V of the corridor under any policy, in closed form."""
    return (1 - GAMMA ** (end - position)) / (1 - GAMMA)


class Corridors(nn.Module):
    """The same in tensors, a lane for each limit. `assign` gives its buffers new tensors, `shared` returns its own."""

    position: Tensor
    steps: Tensor
    episode: Tensor
    limits: Tensor
    seen: Tensor

    def __init__(self, limits: Sequence[int], end: int = 7, assign: bool = False, shared: bool = False) -> None:
        super().__init__()
        self.num_envs, self.end, self.assign, self.shared = len(limits), end, assign, shared
        self.single_observation_space: gym.Space = gym.spaces.Box(-1, 100, (1,), np.float32)
        self.single_action_space: gym.Space = gym.spaces.Discrete(2)
        for name in ("position", "steps", "episode"):
            self.register_buffer(name, torch.zeros(len(limits), dtype=torch.int64))
        self.register_buffer("limits", torch.tensor(limits))
        self.register_buffer("seen", torch.zeros(len(limits), 1))

    @property
    def device(self) -> torch.device:
        return self.position.device

    def put(self, **values: Tensor) -> None:
        for name, value in values.items():
            if self.assign:
                setattr(self, name, value)
            else:
                getattr(self, name).copy_(value)

    def reset(self, seed: int) -> Tensor:
        zero = torch.zeros_like(self.position)
        self.put(position=zero, steps=zero.clone(), episode=zero.clone(), seen=torch.zeros_like(self.seen))
        return self.seen

    def noise(self, steps: int) -> Tensor:
        return torch.empty(steps, 0, device=self.position.device)

    def step(self, action: Tensor, noise: Tensor) -> Transition:
        reached, steps = self.position + 1, self.steps + 1
        terminated, truncated = reached == self.end, steps == self.limits
        ended = terminated | truncated
        episode = self.episode + ended
        position = torch.where(ended, episode % 3, reached)
        seen = position.float().unsqueeze(-1)
        self.put(position=position, steps=torch.where(ended, 0, steps), episode=episode, seen=seen)
        reward = torch.ones_like(position, dtype=torch.float32)
        final = reached.float().unsqueeze(-1)
        action.zero_()  # it may do as it likes with what it was given
        return Transition(self.seen if self.shared else seen, reward, terminated, truncated, final)


class Recall(gym.Env):
    """One step an episode: the observation is ±1, the reward is 1 for the action that names its sign, else 0.

    A tiny problem with a known optimum, 1, that every algorithm must learn within a few thousand steps.
    """

    def __init__(self, continuous: bool = False) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,)) if continuous else gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.sign = int(self.np_random.integers(2)) * 2 - 1
        return np.array([self.sign], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        chosen = int(np.asarray(action).reshape(-1)[0] > 0) * 2 - 1
        return np.array([self.sign], np.float32), float(chosen == self.sign), True, False, {}


class RecallContinuous(Recall):
    """The same with a Box action: its sign counts."""

    def __init__(self) -> None:
        super().__init__(continuous=True)


class Cue(gym.Env):
    """A sign is shown first, then nothing for `wait` steps; the last action must name it. Without memory: 0.5.

    What is seen when the episode ends, and in every step between, says nothing of the sign.
    """

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)

    def __init__(self, wait: int = 4) -> None:
        self.wait = wait

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.sign, self.t = int(self.np_random.integers(2)) * 2 - 1, 0
        return np.array([self.sign, 0], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t > self.wait
        right = float(2 * int(action) - 1 == self.sign) if over else 0.0
        return np.array([0, self.t == self.wait], np.float32), right, over, False, {}


class Cues(nn.Module):
    """Cue in tensors, in many lanes."""

    sign: Tensor
    t: Tensor

    def __init__(self, lanes: int, wait: int = 4) -> None:
        super().__init__()
        self.num_envs, self.wait, self.device = lanes, wait, torch.device("cpu")
        self.single_observation_space: gym.Space = Cue.observation_space
        self.single_action_space: gym.Space = Cue.action_space
        self.register_buffer("sign", torch.ones(lanes))
        self.register_buffer("t", torch.zeros(lanes, dtype=torch.int64))

    def reset(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        self.sign.copy_(torch.rand(self.num_envs, generator=generator).sub(0.5).sign())
        self.t.zero_()
        return torch.stack([self.sign, torch.zeros_like(self.sign)], -1)

    def noise(self, steps: int) -> Tensor:
        return torch.rand(steps, self.num_envs).sub(0.5).sign()

    def step(self, action: Tensor, noise: Tensor) -> Transition:
        t = self.t + 1
        over = t > self.wait
        right = ((2 * action - 1 == self.sign) & over).float()
        final = torch.stack([torch.zeros_like(self.sign), (t == self.wait).float()], -1)
        first = torch.stack([noise, torch.zeros_like(noise)], -1)
        self.sign.copy_(torch.where(over, noise, self.sign))
        self.t.copy_(torch.where(over, 0, t))
        seen = torch.where(over.unsqueeze(-1), first, final)
        return Transition(seen, right, over, torch.zeros_like(over), final)


class Everything(gym.Env):
    """A picture, a word, a number and a choice are seen; a Dict of actions is taken.

    The word and the picture's bright side say the same side, worth 1 where it is named; pushes cost. With `told` only
    "word" or "picture" says it, and the other says anything.
    """

    observation_space = gym.spaces.Dict(
        picture=gym.spaces.Box(0, 255, (16, 16, 3), np.uint8),
        inner=gym.spaces.Tuple([gym.spaces.Text(5, charset="efghilrt"), gym.spaces.Discrete(3, start=1)]),
        number=gym.spaces.Box(-1, 1, (2,), np.float32),
    )
    action_space = gym.spaces.Dict(side=gym.spaces.Discrete(2), push=gym.spaces.Box(-1, 1, (2,), np.float32))

    def __init__(self, told: str = "both") -> None:
        self.told = told

    def _seen(self) -> dict[str, Any]:
        self.side = int(self.np_random.integers(2))
        bright, named = (self.side if self.told in (kind, "both") else self.any() for kind in ("picture", "word"))
        picture = np.zeros((16, 16, 3), np.uint8)
        picture[:, 8 * bright : 8 * bright + 8] = 200
        word, choice = ("left", "right")[named], int(self.np_random.integers(1, 4))
        return {"picture": picture, "inner": (word, choice), "number": np.zeros(2, np.float32)}

    def any(self) -> int:
        return int(self.np_random.integers(2))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), repr(action)
        reward = float(action["side"] == self.side) - 0.1 * float(np.square(action["push"]).sum())
        self.t += 1
        return self._seen(), reward, False, self.t == 8, {}


class Masked(gym.Env):
    """Of many actions few are allowed, others in each step; the allowed one of the lowest number is worth 1.

    `says` is where the mask is said: "info", "method" or "observation"; `none` a step in which nothing is allowed.
    Taking a forbidden action raises.
    """

    def __init__(self, says: str = "info", actions: int = 12, none: int | None = None) -> None:
        self.says, self.actions, self.none = says, actions, none
        plain = gym.spaces.Box(0, 1, (actions,), np.float32)
        mask = gym.spaces.MultiBinary(actions)
        shown = says == "observation"
        self.observation_space = gym.spaces.Dict(seen=plain, action_mask=mask) if shown else plain
        self.action_space = gym.spaces.Discrete(actions)
        if says == "method":
            self.action_masks = lambda: self.mask.astype(bool)

    def _seen(self) -> tuple[Any, dict[str, Any]]:
        self.mask = np.zeros(self.actions, np.int8)
        if self.t != self.none:
            self.mask[self.np_random.choice(self.actions, 3, replace=False)] = 1
        seen = self.mask.astype(np.float32)
        if self.says == "observation":
            return {"seen": seen, "action_mask": self.mask}, {}
        return seen, {"action_mask": self.mask} if self.says == "info" else {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._seen()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.mask[action], f"{action} is forbidden"
        reward = float(action == self.mask.argmax())
        self.t += 1
        observation, info = self._seen()
        return observation, reward, self.t == 10, False, info


class MaskedParts(gym.Env):
    """Masks of choices within a Dict and a Tuple; taking a forbidden option raises.

    `says` is "info", "method" or "observation", part by part, each with `row` in a row.
    """

    action_space = gym.spaces.Dict(
        go=gym.spaces.Discrete(4, start=2),
        inner=gym.spaces.Tuple([gym.spaces.MultiDiscrete([2, 3]), gym.spaces.Box(-1, 1, (1,), np.float32)]),
    )

    def __init__(self, says: str = "info", row: bool = False) -> None:
        self.says, self.row = says, row
        if says == "method":
            self.action_masks = self._said
        parts = gym.spaces.MultiBinary(9) if row else gym.spaces.Dict(go=gym.spaces.MultiBinary(4))
        self.observation_space: gym.Space = gym.spaces.Box(0, 1, (2,), np.float32)
        if says == "observation":
            self.observation_space = gym.spaces.Dict(seen=self.observation_space, action_mask=parts)

    def _said(self) -> Any:
        if self.row:
            return np.concatenate([self.go, *self.pair])
        return dict(go=self.go) if self.says == "observation" else dict(go=self.go, inner=(self.pair, None))

    def _shown(self) -> tuple[Any, dict[str, Any]]:
        self.go, *self.pair = (np.ones(n, np.int8) for n in (4, 2, 3))
        one = self.says == "observation" and not self.row  # no space could hold None for the box within the tuple
        for mask in [self.go] if one else [self.go, *self.pair]:
            mask[self.np_random.integers(len(mask))] = 0
        seen = np.zeros(2, np.float32)
        if self.says == "observation":
            return {"seen": seen, "action_mask": self._said()}, {}
        return seen, {"action_mask": self._said()} if self.says == "info" else {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._shown()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), repr(action)
        a, b = action["inner"][0]
        assert all([self.go[action["go"] - 2], self.pair[0][a], self.pair[1][b]]), f"{action} is forbidden"
        self.t += 1
        shown, info = self._shown()
        return shown, 1.0, False, self.t == 10, info


class Toy(gym.Env):
    """A user's ten lines: any action space, five observations, twenty steps."""

    def __init__(self, action_space: gym.Space | None = None, length: int = 20) -> None:
        self.observation_space, self.length = gym.spaces.Box(-1, 1, (5,)), length
        self.action_space = action_space or gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = self.length
        return self.np_random.uniform(-1, 1, 5).astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), repr(action)
        self.left -= 1
        return self.np_random.uniform(-1, 1, 5).astype(np.float32), 1.0, self.left == 0, False, {}

    def render(self) -> np.ndarray:
        return np.full((32, 32, 3), self.left % 256, np.uint8)


class Faulty(gym.Env):
    """Three numbers, two actions, episodes of ten steps; `reset` and `step` say what it returns instead."""

    def __init__(self, reset: Any = None, step: Any = None, length: int = 10, **spaces: gym.Space) -> None:
        self.observation_space = spaces.get("observation", gym.spaces.Box(-1, 1, (3,), np.float32))
        self.action_space = spaces.get("action", gym.spaces.Discrete(2))
        self.bad_reset, self.bad_step, self.length = reset, step, length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.taken, made = 0, (np.zeros(3, np.float32), {})
        return made if self.bad_reset is None else self.bad_reset(*made)

    def step(self, action: Any) -> Any:
        self.taken += 1
        made = np.zeros(3, np.float32), 1.0, self.taken >= self.length, False, {}
        return made if self.bad_step is None or self.taken < 5 else self.bad_step(*made)

    def render(self) -> None: ...


def breaks_down(*made: Any) -> Any:
    raise RuntimeError("the simulator\nis gone")


@torch.no_grad()
def remembered(policy: Policy, batch: Batch) -> Batch:
    """The batch with the column `old` that a source would give it: the policy's distributions of now, copied."""
    return batch.replace(old=tree_map(torch.clone, policy.evaluate(batch).distribution))
