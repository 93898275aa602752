"""A user's own network: an encoder, a core or a whole policy, each brought as a callable that makes an nn.Module.

What is made is tried at once on blank rows, so that what does not fit is one line before the run begins. It must be a
function of what it is shown and of its parameters: one that draws random numbers or changes its own buffers would see
an observation otherwise while it learns than it did while it acted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from proximo.batch import leaves_of, tree_map, with_leaves
from proximo.drift import exact_kl, looked_at, tensors_of
from proximo.errors import ConfigError
from proximo.models.normalize import Normalizer
from proximo.models.trial import attempted, made, must_be, must_have, several, tried
from proximo.observations import Path, leaves, space_map, storage, zeros
from proximo.policy import Evaluation, Policy, blank

PARTS = ("encoder", "core", "policy")
PROTOCOL = ("sequence", "initial", "noise", "act", "to_env", "value", "evaluate", "observe", "device")
DISTRIBUTION = ("sample", "mode", "logp", "entropy", "kl")
ROWS = 3
MakeEncoder = Callable[[gym.Space], nn.Module]
MakeCore = Callable[[int], nn.Module]
MakePolicy = Callable[[gym.Space, gym.Space], nn.Module]
TOLERANCE = 1e-3  # of numbers of about one, between whole lanes and single steps


@dataclass(frozen=True)
class Own:
    """What a user brings of a policy; None where there is ours. Raises ConfigError for what cannot be brought so."""

    encoder: MakeEncoder | None = None
    """observation space -> a module from observations [N, ...] to features [N, F], any F."""

    core: MakeCore | None = None
    """F -> a `memory.Core` of features [..., F]."""

    policy: MakePolicy | None = None
    """observation space, action space -> a `Policy`."""

    def __post_init__(self) -> None:
        for part in self.names:
            make = getattr(self, part)
            if isinstance(make, nn.Module):
                raise ConfigError(f"{part} is a module: pass what makes one, its class for example")
            if not callable(make):
                raise ConfigError(f"{part} is {make!r}: pass what makes one, a class or a function")
        if self.policy is not None and len(self.names) > 1:
            raise ConfigError(f"policy is the whole of it: leave out {self.names[0]}, or policy")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part for part in PARTS if getattr(self, part) is not None)


class Rows(nn.Module):
    """A user's encoder, which sees rows [N, ...] whatever dimensions there are; see `encoders`."""

    def __init__(self, make: MakeEncoder, space: gym.Space, normalize: bool) -> None:
        """`normalize` puts running statistics before it. Raises ConfigError for what is no encoder."""
        super().__init__()
        self.space = space
        self.encoder: Any = made("encoder", make, space)
        self.scale: Any = Scale(space) if normalize else None
        for rows in (ROWS, 1):
            shown = tree_map(torch.from_numpy, zeros(space, rows))
            features = tried("encoder", self.encoder, self.encoder, shown)
            must_be("encoder", "features", features, (rows, "F"))
        self.features: int = features.shape[1]

    def forward(self, observation: Any) -> Tensor:
        rows, lead = flattened(self.space, observation)
        return self.encoder(rows if self.scale is None else self.scale(rows)).unflatten(0, lead)

    def observe(self, observation: Any, mask: Tensor) -> None:
        rows, _ = flattened(self.space, observation)
        for part in (self.scale, self.encoder):
            if hasattr(part, "observe"):
                part.observe(rows, mask.flatten())


class Scale(nn.Module):
    """Rows of observations, their Boxes centred and scaled by running statistics, images and choices as they are."""

    def __init__(self, space: gym.Space) -> None:
        super().__init__()
        self.space = space
        kept = {path: storage(leaf) for path, leaf in leaves(space).items() if isinstance(leaf, gym.spaces.Box)}
        sizes = {path: math.prod(shape) for path, (shape, dtype) in kept.items() if dtype.kind == "f"}
        self.paths = list(sizes)
        self.boxes: Any = nn.ModuleList(map(Normalizer, sizes.values()))

    def forward(self, rows: Any) -> Any:
        def scaled(path: Path, leaf: gym.Space) -> Tensor:
            part: Tensor = reduce(getitem, path, rows)
            if path not in self.paths:
                return part
            normalizer = self.boxes[self.paths.index(path)]
            return normalizer(part.reshape(-1, normalizer.features)).view(part.shape)

        return space_map(scaled, self.space)

    def observe(self, rows: Any, mask: Tensor) -> None:
        for path, normalizer in zip(self.paths, self.boxes, strict=True):
            part: Tensor = reduce(getitem, path, rows)
            normalizer.observe(part.reshape(-1, normalizer.features), mask)


def flattened(space: gym.Space, observation: Any) -> tuple[Any, tuple[int, ...]]:
    """Observations [*lead, ...] as rows [N, ...], and lead."""
    path, leaf = next(iter(leaves(space).items()))
    first: Tensor = reduce(getitem, path, observation)
    ahead = first.ndim - len(storage(leaf).shape)
    lead = tuple(first.shape[:ahead])
    if ahead == 1:
        return observation, lead
    return tree_map(lambda x: x.reshape(math.prod(lead), *x.shape[ahead:]), observation), lead


def own_core(make: MakeCore, inputs: int) -> Any:
    """A user's core of features [..., inputs]; ConfigError for one that is none, or that does not forget at a start."""
    core: Any = made("core", make, inputs)
    must_have("core", core, ("features", "initial"), "proximo.models.memory.Core")
    first = attempted("core", core.initial, ROWS)
    if not leaves_of(first) or any(len(x) != ROWS for x in leaves_of(first)):
        raise ConfigError(f"your core's initial({ROWS}) must be a tuple of tensors [{ROWS}, ...]")
    rows = torch.arange(4 * ROWS * inputs, dtype=torch.float32, device="cpu").sin().view(4, ROWS, inputs)
    start = torch.zeros(4, ROWS, dtype=torch.bool, device="cpu")
    start[2, 0] = start[0, 1] = True
    outputs, after = several("core", "(outputs, state)", tried("core", core, core, rows, first, start))
    must_be("core", "outputs", outputs, (4, ROWS, core.features))
    if [(x.shape, x.dtype) for x in leaves_of(after)] != [(x.shape, x.dtype) for x in leaves_of(first)]:
        raise ConfigError("your core gives another state than initial: the same tuple of tensors, of the same shapes")
    outputs, _ = attempted("core", core, rows, after, start)  # from a state that has seen something
    for told in (start, torch.zeros_like(start)):  # step by step, as in acting; and with starts made by hand
        singly, state = [], after
        for row, begins, says in zip(rows, start, told, strict=True):
            state = state if told is start else tree_where(begins, first, state)
            output, state = attempted("core", core, row.unsqueeze(0), state, says.unsqueeze(0))
            singly.append(output)
        if not torch.allclose(outputs, torch.cat(singly), TOLERANCE, TOLERANCE):
            raise ConfigError(
                "your core gives other numbers for whole lanes than step by step: before row t, lanes where start[t] "
                "is set fall back to the initial state, in row 0 too, and no row sees a later one"
            )
    return core


def own_policy(make: MakePolicy, observation_space: gym.Space, action_space: gym.Space) -> Any:
    """A user's whole policy; ConfigError for one that does not keep to the protocol."""
    policy: Any = made("policy", make, observation_space, action_space)
    if not any(True for _ in policy.parameters()):
        raise ConfigError("your policy has no parameters")
    must_have("policy", policy, PROTOCOL, "proximo.policy.Policy, or make it with proximo.FeedForward")
    memory = attempted("policy", policy.initial, ROWS)
    steps = policy.sequence if leaves_of(memory) else 2
    batch = attempted("policy", blank, policy, observation_space, steps, ROWS)
    shown, start = tree_map(lambda x: x[0], batch.observation), batch.start[0]
    noise = attempted("policy", policy.noise, ROWS)
    acted = tried("policy", policy, policy.act, shown, noise, memory, start)
    action, after = several("policy's act", "(action, memory)", acted)
    if [x.shape for x in leaves_of(after)] != [x.shape for x in leaves_of(memory)]:
        raise ConfigError("your policy's act gives another memory than initial: the same tuple, of the same shapes")
    must_be("policy", "values", tried("policy", policy, policy.value, shown, memory, start), (ROWS,))
    found = tried("policy", policy, policy.evaluate, batch)
    found = found[:3] if isinstance(found, Evaluation) else found
    logp, value, distribution = several("policy's evaluate", "(logp, value, distribution)", found)
    must_be("policy", "logp", logp, (steps, ROWS))
    must_be("policy", "values", value, (steps, ROWS))
    must_have("policy's distribution", distribution, DISTRIBUTION, "proximo.policy.Distribution")
    one = tree_map(lambda x: x[0], attempted("policy", policy.to_env, action))
    if not action_space.contains(one):
        raise ConfigError(f"your policy's to_env gives {one!r}, which action space {action_space} does not hold")
    return policy


def must_be_float32(policy: Policy, names: tuple[str, ...]) -> None:
    """ConfigError for a parameter of another dtype: all of them are one vector."""
    for name, parameter in policy.named_parameters():
        if parameter.dtype != torch.float32:
            raise ConfigError(f"parameter {name} of your {' and '.join(names)} is {parameter.dtype}: make it float32")


def must_be_measured(policy: Policy, observation_space: gym.Space, names: tuple[str, ...]) -> None:
    """ConfigError for a policy whose drift cannot be measured, which is done in float64 where it is near a bound."""
    batch = blank(policy, observation_space, policy.sequence, ROWS)
    try:
        exact_kl(policy, tensors_of(policy), looked_at(batch))
    except Exception as error:
        raise ConfigError(
            f"your {' and '.join(names)} cannot be evaluated in float64, as drift is ({error}): convert what it sees "
            "to the dtype of its weights, x.to(self.layer.weight.dtype), where it says x.float()"
        ) from error


def must_be_apart(policy: Policy, observation_space: gym.Space, algo: str) -> None:
    """ConfigError for a policy whose actions would change where its value alone is fitted."""
    evaluation = policy.evaluate(blank(policy, observation_space, policy.sequence, ROWS))
    parameters = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}

    def moves(tensors: list[Tensor]) -> set[str]:
        depend = [x.sum() for x in tensors if x.requires_grad]
        if not depend:
            return set()
        slopes = torch.autograd.grad(depend, list(parameters.values()), retain_graph=True, allow_unused=True)
        return {name for name, slope in zip(parameters, slopes, strict=True) if slope is not None}

    if both := moves([evaluation.value]) & moves(leaves_of(evaluation.distribution)):
        raise ConfigError(
            f"{algo} fits the value after the policy's step, and would move {min(both)}, which your actions depend on "
            "too, out of the trust region: give actor and critic parameters of their own"
        )


def tree_where(chosen: Tensor, tree: Any, other: Any) -> Any:
    """The lanes [N, ...] of one tree where `chosen` [N], of the other elsewhere."""
    pairs = zip(leaves_of(tree), leaves_of(other), strict=True)
    return with_leaves(tree, [torch.where(chosen.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs])
