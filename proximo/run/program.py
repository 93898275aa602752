"""An agent's most likely actions as a program that stands alone: named tensors [N, ...] -> named tensors [N, ...]."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proximo.batch import leaves_of, with_leaves
from proximo.errors import ConfigError
from proximo.models.actor_critic import ActorCritic
from proximo.models.distributions import (
    BernoulliHead,
    BetaHead,
    CategoricalHead,
    CompositeHead,
    MultiCategoricalHead,
    SquashedGaussianHead,
)
from proximo.models.distributions.continuous import Bounds
from proximo.observations import Path, leaves, space_map
from proximo.run.agent import Agent


class Program(nn.Module):
    """What an agent most likely does, with all that it takes: its normaliser, its memory, the environment's units.

    Inputs are the leaves of an observation as they are stored (`observations.storage`); outputs those of an action as
    the environment takes it. One that remembers has a `memory_i` for each tensor of its memory, zeros in the beginning,
    which `next_memory_i` goes on with, and `start` [N] bool: where it is set an episode begins, and what is remembered
    does not count. The critic is no part of it.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.policy, self.space = acting(ours(agent)), agent.observation_space
        self.shown = named("observation", leaves(agent.observation_space))
        done = list[Path]()
        space_map(lambda path, leaf: done.append(path), agent.action_space)
        self.done = named("action", done)
        self.units = nn.ModuleList(map(units, parts(self.policy.head)))
        self.blank = self.policy.initial(1)

    def initial(self, lanes: int) -> dict[str, Tensor]:
        """What is remembered, as inputs, before anything was seen."""
        return {f"memory_{i}": tensor for i, tensor in enumerate(leaves_of(self.policy.initial(lanes)))}

    def inputs(self, observation: Any, memory: dict[str, Tensor], start: Tensor) -> dict[str, Tensor]:
        """Observations as the policy takes them, [N, ...], and what is remembered, as inputs."""
        shown = dict(zip(self.shown.values(), leaves_of(observation), strict=True))
        return shown | memory | ({"start": start} if memory else {})

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        observation = space_map(lambda path, leaf: inputs[self.shown[path]], self.space)
        memory = with_leaves(self.blank, (inputs[name] for name in self.initial(1)))
        action, after = self.policy.act(observation, None, memory, inputs.get("start"))
        chosen = zip(self.done.values(), self.units, leaves_of(action), strict=True)
        actions = {name: unit(part) for name, unit, part in chosen}
        return actions | {f"next_memory_{i}": tensor for i, tensor in enumerate(leaves_of(after))}


def ours(agent: Agent) -> ActorCritic:
    """An agent's policy; ConfigError for one of somebody's own making, whose parts are not known."""
    if not isinstance(agent.policy, ActorCritic):
        raise ConfigError("a policy of your own cannot be exported here: give torch.onnx.export your own module")
    return agent.policy


def acting(policy: ActorCritic) -> ActorCritic:
    """A copy of a policy that acts and no more."""
    copied = copy.deepcopy(policy).cpu().eval()
    copied.critic_trunk, copied.critic = None, nn.Sequential()
    return copied


def named(kind: str, paths: Iterable[Path]) -> dict[Path, str]:
    """A name for each leaf, an identifier in every language: "observation_camera_0"."""
    names = dict[Path, str]()
    for path in paths:
        plain = re.sub(r"\W", "_", "_".join(map(str, (kind, *path))), flags=re.ASCII)
        while plain in names.values():
            plain += "_"
        names[path] = plain
    return names


def parts(head: Any) -> list[Any]:
    """The heads of an action's leaves, in their order."""
    return [leaf for part in head.heads for leaf in parts(part)] if isinstance(head, CompositeHead) else [head]


def bounds_of(head: Any) -> Bounds | None:
    """The bounds of a Box's head; choices have none."""
    return getattr(getattr(head, "base", head), "bounds", None)


def units(head: Any) -> nn.Module:
    """A head's `to_env` in tensors."""
    match head:
        case CategoricalHead() | MultiCategoricalHead():
            return ChoiceUnits(np.asarray(head.first), head.dtype)
        case BernoulliHead():
            return ChoiceUnits(np.zeros(head.shape, np.int64), head.dtype)
        case SquashedGaussianHead():
            return BoxUnits(head.base.bounds, torch.tanh)
        case BetaHead():
            return BoxUnits(head.bounds, lambda logit: torch.tanh(logit / 2))
    return BoxUnits(head.bounds, lambda action: action)


class ChoiceUnits(nn.Module):
    """Choices counted from 0 -> from the space's own first."""

    first: Tensor

    def __init__(self, first: np.ndarray, dtype: Any) -> None:
        super().__init__()
        self.register_buffer("first", torch.from_numpy(first.astype(np.int64)))
        self.dtype = tensor_dtype(dtype)

    def forward(self, action: Tensor) -> Tensor:
        return (action.reshape(-1, *self.first.shape).to(torch.int64) + self.first).to(self.dtype)


class BoxUnits(nn.Module):
    """`Bounds.to_env`, in the least precision that its numbers need: few runtimes have float64."""

    centre: Tensor
    reach: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, bounds: Bounds, squash: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        precision = np.promote_types(bounds.dtype, np.float32)
        for name in ("centre", "reach", "low", "high"):
            self.register_buffer(name, torch.from_numpy(np.array(getattr(bounds, name), precision)))
        self.squash, self.dtype = squash, tensor_dtype(bounds.dtype)

    def forward(self, action: Tensor) -> Tensor:
        scaled = self.centre + self.reach * self.squash(action).reshape(-1, *self.reach.shape).to(self.reach.dtype)
        inside = torch.minimum(torch.maximum(scaled, self.low), self.high)
        return (inside if self.dtype.is_floating_point else inside.round()).to(self.dtype)


def tensor_dtype(dtype: Any) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, dtype)).dtype
