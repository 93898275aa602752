"""Experience from environments that live in tensors, on the policy's device, which nobody waits for in a step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import torch
from torch import Tensor, nn

from proximo.batch import Batch, leaves_of
from proximo.compiler import fused, fused_batch
from proximo.compiler.trace import tracing
from proximo.errors import ConfigError, EnvFailure, NonFiniteError, ProximoError
from proximo.policy import Policy
from proximo.sources.acting import judged
from proximo.sources.episodes import Episodes
from proximo.state import live_tensors

log = logging.getLogger("proximo")
UNROLLED = 32  # the most steps in one compiled call


class Transition(NamedTuple):
    """What one step of N lanes returns. Lanes whose episode ended have begun a new one already.

    The environment may go on writing into the tensors that it returned.
    """

    observation: Tensor  # [N, ...] what the policy sees next: the first observation of a new episode where one ended
    reward: Tensor  # [N]
    terminated: Tensor  # [N] bool
    truncated: Tensor  # [N] bool
    final: Tensor  # [N, ...] the observation that the action led to: another one only where an episode ended


@runtime_checkable
class TensorEnv(Protocol):
    """Lanes in tensors on one device.

    One that is an nn.Module, with all that changes in its buffers, is compiled with the policy; one that changes other
    attributes is found out and runs uncompiled, as does any other class.
    """

    num_envs: int
    single_observation_space: gym.Space
    single_action_space: gym.Space

    @property
    def device(self) -> torch.device: ...

    def reset(self, seed: int) -> Tensor:
        """Begin an episode in every lane: observations [N, ...]. All randomness follows from the seed."""
        ...

    def noise(self, steps: int) -> Tensor:
        """The randomness of `steps` steps, [steps, ...], drawn from torch's global generator; of any shape."""
        ...

    def step(self, action: Tensor, noise: Tensor) -> Transition:
        """Step every lane with actions in the policy's own units (`Distribution`)."""
        ...


class TensorSource:
    """Collects `horizon` steps from every lane of a TensorEnv. `make` and `restart` are as in `EnvSource`."""

    def __init__(self, make: Callable[[int], TensorEnv], horizon: int) -> None:
        self.make, self.horizon = make, horizon
        self.episodes = Episodes()
        self.policy: Policy | None = None
        self.unrolled = max(steps for steps in range(1, UNROLLED + 1) if horizon % steps == 0)

    def restart(self, seed: int) -> None:
        """Start first episodes from `seed`; the open ones are given up."""
        if not hasattr(self, "env"):
            self.env = guarded("maker", lambda: self.make(seed))
        with pinned(self.env):
            first = guarded("reset()", lambda: self.env.reset(seed))
        device = getattr(first, "device", torch.device("cpu"))
        shape = self.env.num_envs, *(self.env.single_observation_space.shape or ())
        self.observation = taken("observation", first, shape, device)
        self.fresh = torch.ones(self.env.num_envs, dtype=torch.bool, device=device)
        self.episodes.restart(self.env.num_envs)

    def collect(self, policy: Policy) -> Batch:
        """`horizon` steps of every lane, with log-probabilities and values under `policy`: columns of [T, N].

        EnvFailure if the environment raises or breaks its interface; NonFiniteError if it returns NaN or infinity.
        """
        noise = policy.noise(self.horizon, self.env.num_envs)
        chance = guarded("noise()", lambda: self.env.noise(self.horizon))
        if not isinstance(chance, Tensor) or chance.shape[:1] != (self.horizon,):
            raise EnvFailure(f"the environment's noise({self.horizon}) must return a tensor of that many rows")
        if self.observation.device != noise.device:
            raise EnvFailure(f"the environment is on {self.observation.device}, but the policy is on {noise.device}")
        if policy is not self.policy:
            if leaves_of(policy.initial(1)):
                raise ConfigError("an environment in tensors has no policy that remembers yet: leave out memory")
            self.policy, self.judge = policy, None
            self.walk = walking(policy, self.env, [self.observation, noise[: self.unrolled], chance[: self.unrolled]])
        pieces = list[tuple[Tensor, ...]]()
        for drawn, happened in zip(noise.split(self.unrolled), chance.split(self.unrolled), strict=True):
            self.observation, *piece = self.walk(self.observation, drawn, happened)
            pieces.append(tuple(piece))
        walked = Batch(pieces=tuple(pieces), fresh=self.fresh, last=self.observation)
        self.judge = self.judge or concluding(policy, walked)
        columns = vars(self.judge(walked))
        final, ended, witness = (columns.pop(name) for name in ("final", "ended", "witness"))
        batch, cut, self.fresh = Batch(**columns), columns["truncated"].nonzero(as_tuple=True), ended[-1]
        if not witness.isfinite():
            self._refuse(batch, final, cut)
        self.episodes.add(*(x.cpu().numpy() for x in (batch.reward, batch.mask, ended)))
        if len(cut[0]):
            with torch.no_grad():
                batch.next_value[cut] = policy.value(final[cut])
        return batch

    def _refuse(self, batch: Batch, final: Tensor, cut: tuple[Tensor, ...]) -> None:
        """NonFiniteError that names the first NaN or infinity, if there is one; `final` counts in the rows `cut`."""
        ends = torch.zeros_like(batch.observation)
        ends[cut] = final[cut]
        for found in culprits(torch.cat([batch.observation, self.observation.unsqueeze(0)]), batch.reward, ends):
            raise NonFiniteError(f"the environment returned {found}")

    def state_tensors(self) -> dict[str, Tensor]:
        return live_tensors(episodes=self.episodes)

    def close(self) -> None:
        """Nothing is open."""


class Together(nn.Module):
    """A policy and an environment, for a graph that looks at the tensors of both."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def walking(policy: Policy, env: TensorEnv, example: list[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """A walk of some steps as one call: (observation, noise, chance) -> the last observation, then columns [k, N]."""
    lanes, shape = env.num_envs, (env.num_envs, *(env.single_observation_space.shape or ()))
    wanted = (shape, (lanes,), (lanes,), (lanes,), shape)
    device, dtypes = example[1].device, (torch.float32, torch.float32, torch.bool, torch.bool, torch.float32)

    def step(action: Tensor, chance: Tensor) -> list[Tensor]:
        made = guarded("step()", lambda: Transition(*env.step(action.clone(), chance)))
        own = {x.untyped_storage()._cdata for x in env.buffers()} if isinstance(env, nn.Module) else None
        parts = zip(made._fields, made, wanted, dtypes, strict=True)
        return [taken(name, value, shape, device, dtype, own) for name, value, shape, dtype in parts]

    def walk(observation: Tensor, noise: Tensor, chance: Tensor) -> tuple[Tensor, ...]:
        rows = []
        with pinned(env):
            for drawn, happened in zip(noise.unbind(), chance.unbind(), strict=True):
                action = policy.act(observation, drawn)[0]
                following, *outcome = step(action, happened)
                rows.append((observation, action, *outcome))
                observation = following
        return observation, *(torch.stack(column) for column in zip(*rows, strict=True))

    if isinstance(env, nn.Module):
        before = [(vars(module), dict(vars(module))) for module in env.modules()]
        call = fused(Together(policy=policy, env=env), walk, example)
        pairs = [(name, now.get(name), old.get(name)) for now, old in before for name in now.keys() | old.keys()]
        changed = sorted(name for name, new, old in pairs if new is not old)
        if not changed:
            return call
        for now, old in before:  # tracing ran the step on copies
            now.clear()
            now.update(old)
        log.warning("the environment runs uncompiled: step() changes %s; what changes must be a buffer", changed[0])
    return torch.no_grad()(walk)


def concluding(policy: Policy, example: Batch) -> Callable[[Batch], Batch]:
    """The columns of a collection from its `pieces`, with what the policy thinks of them, as one call.

    Besides: `final` [T, N, ...], `ended` [T, N], and a `witness` that is finite only if all numbers are.
    """

    def conclude(walked: Batch) -> Batch:
        observation, action, reward, terminated, truncated, final = map(torch.cat, zip(*walked.pieces, strict=True))
        ended = terminated | truncated
        batch = Batch(
            observation=observation, action=action, mask=torch.ones_like(ended), reward=reward,
            start=torch.cat([walked.fresh.unsqueeze(0), ended[:-1]]), terminated=terminated, truncated=truncated,
        )  # fmt: skip
        witness = observation.sum() + walked.last.sum() + reward.sum() + final.sum()
        opinion = judged(policy, batch.replace(last=walked.last))
        return batch.replace(**vars(opinion), final=final, ended=ended, witness=witness)

    return fused_batch(policy, conclude, example)


def taken(
    name: str,
    value: Any,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    own: set[int] | None = None,
) -> Tensor:
    """What the environment returned, in memory that it will not write to; EnvFailure where it is not such a tensor.

    In a trace only the buffers, whose storages are `own`, are ever written to: what is new needs no copy.
    """
    if not isinstance(value, Tensor):
        raise EnvFailure(f"the environment returned {name} as a {type(value).__name__}, not as a tensor")
    if value.shape != shape:
        raise EnvFailure(f"the environment returned {name} of shape {tuple(value.shape)}, not {shape}")
    if value.device != device:
        raise EnvFailure(f"the environment returned {name} on {value.device}, but the policy is on {device}")
    if value.dtype is dtype:
        return value if own is not None and tracing() and value.untyped_storage()._cdata not in own else value.clone()
    if torch.bool in (dtype, value.dtype) or value.dtype.is_complex:
        raise EnvFailure(f"the environment returned {name} of {value.dtype}, not of {dtype}")
    return value.to(dtype)


def guarded(what: str, call: Callable[[], Any]) -> Any:
    """What the environment's code returns; EnvFailure if it raises."""
    try:
        return call()
    except ProximoError:
        raise
    except Exception as error:
        raise EnvFailure(f"the environment's {what} raised {type(error).__name__}: {error}") from error


@contextmanager
def pinned(env: Any) -> Iterator[None]:
    """A block after which the environment's buffers are the tensors they were, with what was assigned written in.

    Graphs hold those tensors, and read nothing else.
    """
    modules = env.modules() if isinstance(env, nn.Module) else ()
    before = [(module._buffers, dict(module._buffers)) for module in modules]
    yield
    moved = [(now, name, old) for now, kept in before for name, old in kept.items() if now.get(name) is not old]
    news = [new if (new := now.get(name)) is None else new.clone() for now, name, _ in moved]
    for (now, name, old), new in zip(moved, news, strict=True):
        if old is None:
            continue
        if new is None or new.shape != old.shape or new.dtype != old.dtype:
            got = "None" if new is None else f"{new.dtype} {list(new.shape)}"
            raise EnvFailure(f"the environment's buffer {name!r} was {old.dtype} {list(old.shape)} and became {got}")
        now[name] = old.copy_(new)


def culprits(observation: Tensor, reward: Tensor, final: Tensor) -> list[str]:
    """The values that are not finite, in words, the first of each kind; none where all are, whatever their sum."""
    found = []
    for name, column in (("observation", observation), ("reward", reward), ("final observation", final)):
        for t, lane, *feature in (~column.isfinite()).nonzero()[:1].tolist():
            value = column[(t, lane, *feature)].item()
            found.append((t, f"{name}{feature or ''} = {value} in lane {lane} at step {t} of the rollout"))
    return [words for _, words in sorted(found)]
