"""Whether a program does what its agent does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from proximo.batch import Batch, leaves_of, tree_map, with_leaves
from proximo.models.encoders import Flat, TreeEncoder
from proximo.models.memory import Transformer
from proximo.models.normalize import Normalizer
from proximo.models.own import Rows
from proximo.observations import Path, pointer, space_map
from proximo.run.agent import Agent
from proximo.run.program import Program, bounds_of, parts
from proximo.sources.buffers import Leaf

LANES, STEPS = 32, 4
Runtime = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def disagreement(agent: Agent, program: Program, runtime: Runtime) -> float:
    """The greatest difference between what a runtime makes of a program and what the agent does; infinite or NaN where
    it makes no action at all.

    Of a bounded coordinate it is a share of half its range, of other numbers a share of their size, or of 1 where that
    is larger. The agent rounds too: only what the program is further off counts. Of choices it is how much less likely,
    in nats, the agent finds those of the program. The agent forgets what it remembered.
    """
    rng, found = np.random.default_rng(0), list[float]()
    for leaf in agent.leaves:
        leaf.space.seed(0)
    for lanes, steps in walks(agent):
        agent.reset()
        memory, remembered = agent.policy.initial(lanes), program.initial(lanes)
        for step in range(steps):
            seen = observations(agent, lanes, rng)
            begun = rng.random(lanes) < (0.5 if step == 0 else 0.2 if lanes > 1 else 0)  # at first nothing to forget
            rows, start = agent.rows(seen)[0], torch.from_numpy(begun)
            inputs = program.inputs(rows, remembered, start)
            made = runtime({name: tensor.numpy() for name, tensor in inputs.items()})
            theirs = [made[name] for name in program.done.values()]
            shown = Batch(observation=rows, start=start, mask=torch.ones_like(start), memory=memory)
            found.append(of_actions(agent, shown, leaves_of(agent.act(seen, start=begun)), theirs))
            memory, remembered = agent.memory, {name: torch.from_numpy(made[f"next_{name}"]) for name in remembered}
            found += map(of_memory, leaves_of(memory), remembered.values())  # a critic's own comes last, and is left
    return float(np.max(found))


def walks(agent: Agent) -> list[tuple[int, int]]:
    """(lanes, steps) that are compared: one episode that outlasts stack and window, many that end early."""
    policy: Any = agent.policy
    stack = 0 if policy.frames is None else policy.frames.k - 1
    window = policy.trunk.core.window - 1 if isinstance(policy.trunk.core, Transformer) else 0
    return [(1, stack + window + STEPS), (LANES, STEPS)]


def of_actions(agent: Agent, shown: Batch, own: list[Any], theirs: list[Any]) -> float:
    """The greatest difference between the agent's own actions and theirs, leaf by leaf, [N, ...]."""
    policy: Any = agent.policy
    heads, spaces = parts(policy.head), list[gym.Space]()
    space_map(lambda path, space: spaces.append(space), agent.action_space)
    mode, _ = agent.policy.act(shown.observation, None, shown.memory, shown.start)
    chosen, found = leaves_of(mode), list[float]()
    exact: list[Any] = leaves_of(unrounded(policy.head).to_env(tree_map(lambda x: x.numpy(), mode)))
    for i, (head, space, ours, other) in enumerate(zip(heads, spaces, own, theirs, strict=True)):
        alike = ours.dtype == other.dtype and ours.shape == other.shape
        if not alike or not all(space.contains(np.asarray(x)) for x in other):
            return math.inf
        if (bounds := bounds_of(head)) is not None:
            further = abs(other - exact[i]) - abs(ours - exact[i])
            scale = np.maximum(np.broadcast_to(bounds.reach, further.shape), abs(exact[i]))
            found.append(np.divide(further, scale, out=further, where=scale > 0).max())
        else:  # how far from the agent's own, counted as the policy does
            moved = torch.from_numpy(other.astype(np.int64) - ours.astype(np.int64))
            chosen[i] = chosen[i] + moved.reshape(chosen[i].shape).to(chosen[i].dtype)
    return float(np.max([0.0, *found, less_likely(agent, shown, mode, with_leaves(mode, chosen))]))


def less_likely(agent: Agent, shown: Batch, own: Any, theirs: Any) -> float:
    """By how many nats at most the agent finds their actions less likely than its own."""

    def logp(action: Any) -> Tensor:
        rows = shown.replace(action=action).map(lambda x: x.unsqueeze(0))
        return agent.policy.evaluate(rows).logp

    with torch.no_grad():
        return (logp(own) - logp(theirs)).max().item()


def of_memory(own: Tensor, theirs: Tensor) -> float:
    """The greatest difference, as a share of what is larger than 1."""
    return ((own.double() - theirs.double()).abs() / own.double().abs().clamp(min=1)).max().item()


def unrounded(head: Any) -> Any:
    """A head whose actions are not rounded to what the environment takes."""
    head = copy.deepcopy(head)
    for bounds in filter(None, map(bounds_of, parts(head))):
        bounds.dtype = np.dtype(np.float64)
    return head


def observations(agent: Agent, lanes: int, rng: np.random.Generator) -> Any:
    """Random observations [lanes, ...] as the environment would give them, around what the agent has seen."""
    drawn = iter([numbers(agent, leaf, lanes, rng) for leaf in agent.leaves])
    return space_map(lambda path, space: next(drawn), agent.observation_space)


def numbers(agent: Agent, leaf: Leaf, lanes: int, rng: np.random.Generator) -> Any:
    """Those of one leaf."""
    if leaf.binary:
        return switches(agent, leaf, lanes, rng)
    return around(agent, leaf, lanes, rng) if leaf.dtype.kind == "f" else samples(leaf, lanes)


def samples(leaf: Leaf, lanes: int) -> Any:
    drawn = [leaf.space.sample() for _ in range(lanes)]
    return drawn if isinstance(leaf.space, gym.spaces.Text) else np.stack(drawn)


def switches(agent: Agent, leaf: Leaf, lanes: int, rng: np.random.Generator) -> np.ndarray:
    """Yes or no at random; of a mask, with an option for each choice."""
    drawn = rng.integers(2, size=(lanes, *leaf.shape)).astype(np.int8)
    if leaf is agent.mask:
        firsts = np.cumsum([0, *agent.choices[:-1]])
        np.put_along_axis(drawn, firsts + rng.integers(agent.choices, size=(lanes, len(firsts))), 1, -1)
    return drawn


def around(agent: Agent, leaf: Leaf, lanes: int, rng: np.random.Generator) -> np.ndarray:
    """Within the bounds, from close to the middle to far from it: of what was seen, or else of the bounds."""
    space: Any = leaf.space
    low, high = (np.clip(bound.astype(np.float64), -1e6, 1e6) for bound in (space.low, space.high))
    bounded = high - low <= 20
    middle, spread = np.where(bounded, (low + high) / 2, np.clip(0, low, high)), np.where(bounded, (high - low) / 2, 1)
    policy: Any = agent.policy
    if (normalizer := normalizer_of(policy.trunk.encoder, leaf.path)) is not None:
        moments = (normalizer.moments.mean, normalizer.moments.std())  # of stacks, the newest frame's
        middle, spread = (x.numpy().reshape(-1, *leaf.shape)[-1] for x in moments)
    far = rng.normal(size=(lanes, *leaf.shape)) * rng.choice([0.3, 3.0, 30.0], (lanes, *[1] * len(leaf.shape)))
    return np.clip(middle + spread * far, space.low, space.high)


def normalizer_of(encoder: Any, path: Path) -> Normalizer | None:
    """Our running statistics of a leaf; what a user's own encoder keeps is not known to be any leaf's."""
    match encoder:
        case Rows():
            scale = encoder.scale
            return scale.boxes[scale.paths.index(path)] if scale is not None and path in scale.paths else None
        case TreeEncoder():
            return normalizer_of(dict(encoder.leaves.items()).get(pointer(path)), path)
        case Flat():
            return normalizer_of(encoder.vector, path)
    return encoder if isinstance(encoder, Normalizer) else None
