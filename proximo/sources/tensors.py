"""Experience from environments that live in tensors, on the policy's device, which nobody waits for in a step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from math import gcd
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import torch
from torch import Tensor, nn

from proximo.batch import Batch, leaves_of, tree_map, with_leaves
from proximo.compiler import fused_batch
from proximo.errors import EnvFailure
from proximo.policy import Policy
from proximo.sources.acting import final_values, judged
from proximo.sources.contract import Contract, guarded, pinned, taken
from proximo.sources.episodes import Episodes
from proximo.state import live_tensors

log = logging.getLogger("proximo")
UNROLLED = 32  # the most steps in one compiled call


class Transition(NamedTuple):
    """What one step of N lanes returns. Lanes whose episode ended have begun a new one already.

    The environment may go on writing into the tensors that it returned.
    """

    observation: Any  # [N, ...] what the policy sees next: the first observation of a new episode where one ended
    reward: Tensor  # [N]
    terminated: Tensor  # [N] bool
    truncated: Tensor  # [N] bool
    final: Any  # [N, ...] the observation that the action led to: another one only where an episode ended


@runtime_checkable
class TensorEnv(Protocol):
    """Lanes in tensors on one device. Observations and actions are tensors, or nested dicts and tuples of them.

    One that is an nn.Module, with all that changes in its buffers, is compiled with the policy; one that changes other
    attributes is found out and runs uncompiled, as does any other class.
    """

    num_envs: int
    single_observation_space: gym.Space
    single_action_space: gym.Space

    @property
    def device(self) -> torch.device: ...

    def reset(self, seed: int) -> Any:
        """Begin an episode in every lane: observations [N, ...]. All randomness follows from the seed."""
        ...

    def noise(self, steps: int) -> Tensor:
        """The randomness of `steps` steps, [steps, ...], drawn from torch's global generator; of any shape."""
        ...

    def step(self, action: Any, noise: Tensor) -> Transition:
        """Step every lane with actions in the policy's own units (`Distribution`)."""
        ...


class TensorSource:
    """Collects `horizon` steps from every lane of a TensorEnv. `make` and `restart` are as in `EnvSource`."""

    def __init__(self, make: Callable[[int], TensorEnv], horizon: int) -> None:
        self.make, self.horizon = make, horizon
        self.episodes = Episodes()
        self.policy: Policy | None = None
        self.judge: Callable[[Batch], Batch] | None = None

    def restart(self, seed: int) -> None:
        """Start first episodes from `seed`; the open ones are given up."""
        if not hasattr(self, "env"):
            self.env = env = guarded("maker", lambda: self.make(seed))
            self.contract = Contract(env.single_observation_space, env.single_action_space, env.num_envs)
        with pinned(self.env):
            first = guarded("reset()", lambda: self.env.reset(seed))
        self.device = self.contract.device_of(first)
        self.fresh = torch.ones(self.env.num_envs, dtype=torch.bool, device=self.device)
        self._stand(self.contract.observation("observation", first, self.device))
        self.episodes.restart(self.env.num_envs)

    def _stand(self, observation: Any) -> None:
        """Before these observations, with nothing remembered: `now` is what the next step begins from."""
        blank = () if self.policy is None else self.policy.initial(self.env.num_envs)
        remembered = dict(memory=blank, start=self.fresh) if leaves_of(blank) else {}
        self.now: dict[str, Any] = dict(observation=observation, **remembered)

    def _meet(self, policy: Policy, noise: Any, chance: Tensor) -> None:
        """Get ready for another policy, with the noise and chance of a collection."""
        self.policy, self.judge = policy, None
        self._stand(self.now["observation"])
        span = gcd(self.horizon, policy.sequence) if "memory" in self.now else self.horizon
        self.unrolled = max(steps for steps in range(1, UNROLLED + 1) if span % steps == 0)
        some, happened = tree_map(lambda x: x[: self.unrolled], noise), chance[: self.unrolled]
        self.walk = walking(policy, self.env, self.contract, Batch(now=self.now, noise=some, chance=happened))

    def collect(self, policy: Policy) -> Batch:
        """`horizon` steps of every lane, with log-probabilities and values under `policy`: columns of [T, N].

        EnvFailure if the environment raises or breaks its interface; NonFiniteError if it returns NaN or infinity.
        """
        noise = policy.noise(self.horizon, self.env.num_envs)
        chance = guarded("noise()", lambda: self.env.noise(self.horizon))
        if not isinstance(chance, Tensor) or chance.shape[:1] != (self.horizon,):
            raise EnvFailure(f"the environment's noise({self.horizon}) must return a tensor of that many rows")
        if self.device != (theirs := leaves_of(noise)[0].device):
            raise EnvFailure(f"the environment is on {self.device}, but the policy is on {theirs}")
        if policy is not self.policy:
            self._meet(policy, noise, chance)
        pieces, kept = list[dict[str, Any]](), list[Any]()
        parts = (apart(lambda x: x.split(self.unrolled), tree) for tree in (noise, chance))
        for i, (drawn, happened) in enumerate(zip(*parts, strict=True)):
            if "memory" in self.now and i * self.unrolled % policy.sequence == 0:
                kept.append(self.now["memory"])
            walked = self.walk(Batch(now=self.now, noise=drawn, chance=happened))
            self.now = walked.now
            pieces.append(walked.rows)
        whole = Batch(pieces=tuple(pieces), fresh=self.fresh, now=self.now, kept=tuple(kept))
        self.judge = self.judge or concluding(policy, self.contract, whole)
        columns = vars(self.judge(whole))
        final, ended, witness = (columns.pop(name) for name in ("final", "ended", "witness"))
        batch, self.fresh = Batch(**columns), ended[-1]
        if not witness.isfinite():
            self.contract.refuse(batch.observation, self.now["observation"], batch.reward, final, batch.truncated)
        self.episodes.add(*(x.cpu().numpy() for x in (batch.reward, batch.mask, ended)))
        cut = batch.truncated.nonzero(as_tuple=True)
        if len(cut[0]):
            batch.next_value[cut] = final_values(policy, batch, final)[cut]
        return batch

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


def walking(policy: Policy, env: TensorEnv, contract: Contract, example: Batch) -> Callable[[Batch], Batch]:
    """A walk of some steps as one call, from a batch of `now`, `noise` and `chance` to `now` after it and its `rows`.

    `now` has the observation and, where the policy remembers, the memory and the lanes in which an episode starts;
    rows are columns [k, N, ...].
    """
    lanes, device = env.num_envs, leaves_of(example.noise)[0].device

    def step(action: Any, chance: Tensor) -> dict[str, Any]:
        made = guarded("step()", lambda: Transition(*env.step(tree_map(torch.clone, action), chance)))
        own = {x.untyped_storage()._cdata for x in env.buffers()} if isinstance(env, nn.Module) else None
        found = dict[str, Any]()
        for name, value in made._asdict().items():
            if name in ("observation", "final"):
                found[name] = contract.observation(name, value, device, own)
            else:
                dtype = torch.float32 if name == "reward" else torch.bool
                found[name] = taken(name, value, (lanes,), device, dtype, own)
        return found

    def walk(given: Batch) -> Batch:
        rows, now = list[dict[str, Any]](), given.now
        with pinned(env):
            for drawn, happened in zip(*(apart(torch.unbind, x) for x in (given.noise, given.chance)), strict=True):
                action, memory = policy.act(now["observation"], drawn, now.get("memory", ()), now.get("start"))
                made = step(action, happened)
                following = dict(observation=made.pop("observation"))
                rows.append(dict(observation=now["observation"], action=action, **made))
                if "memory" in now:
                    following |= dict(memory=memory, start=made["terminated"] | made["truncated"])
                now = following
        return Batch(now=now, rows=together(torch.stack, rows))

    if isinstance(env, nn.Module):
        before = [(vars(module), dict(vars(module))) for module in env.modules()]
        call = fused_batch(Together(policy=policy, env=env), walk, example)
        pairs = [(name, now.get(name), old.get(name)) for now, old in before for name in now.keys() | old.keys()]
        changed = sorted(name for name, new, old in pairs if new is not old)
        if not changed:
            return call
        for now, old in before:  # tracing ran the step on copies
            now.clear()
            now.update(old)
        log.warning("the environment runs uncompiled: step() changes %s; what changes must be a buffer", changed[0])
    return torch.no_grad()(walk)


def concluding(policy: Policy, contract: Contract, example: Batch) -> Callable[[Batch], Batch]:
    """The columns of a collection from its `pieces`, with what the policy thinks of them, as one call.

    Besides: `final` [T, N, ...], `ended` [T, N], and a `witness` that is finite only if all is well.
    """

    def conclude(walked: Batch) -> Batch:
        rows, now = together(torch.cat, walked.pieces), walked.now
        final, ended = rows["final"], rows["terminated"] | rows["truncated"]
        batch = Batch(
            observation=rows["observation"], action=rows["action"], mask=torch.ones_like(ended), reward=rows["reward"],
            start=torch.cat([walked.fresh.unsqueeze(0), ended[:-1]]),
            terminated=rows["terminated"], truncated=rows["truncated"],
        )  # fmt: skip
        witness = contract.witness(batch.observation, now["observation"], batch.reward, final)
        after = dict[str, Any]()
        if "memory" in now:
            batch = batch.replace(memory=together(torch.stack, walked.kept))
            after = dict(last_memory=now["memory"], last_start=now["start"])
        opinion = judged(policy, batch.replace(last=now["observation"], **after))
        return batch.replace(**vars(opinion), final=final, ended=ended, witness=witness)

    return fused_batch(policy, conclude, example)


def apart(cut: Callable[[Tensor], Iterable[Tensor]], tree: Any) -> list[Any]:
    """The trees that a cut of every tensor makes of a tree."""
    return [with_leaves(tree, part) for part in zip(*map(cut, leaves_of(tree)), strict=True)]


def together(join: Callable[[Any], Tensor], trees: Any) -> Any:
    """One tree of many, tensor by tensor."""
    return with_leaves(trees[0], map(join, zip(*map(leaves_of, trees), strict=True)))
