"""Experience from environments: vector environments of any autoreset mode, one Batch at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from proximo.batch import Batch, tree_map
from proximo.compiler import fused, fused_batch
from proximo.errors import EnvFailure, NonFiniteError
from proximo.policy import Policy
from proximo.sources.episodes import Episodes
from proximo.state import live_tensors

MakeEnvs = Callable[[int], gym.vector.VectorEnv]
Finals = dict[tuple[int, int], np.ndarray]  # (step, lane): the observation that an episode ended with


class EnvSource:
    """Collects `horizon` steps from every lane of a vector environment.

    `make(seed)` builds the lanes anew. `restart(seed)` is called before the first collection and at every checkpoint:
    the lanes are rebuilt from the seed alone, so that a resumed run meets the same episodes as one that never stopped.
    """

    def __init__(self, make: MakeEnvs, horizon: int) -> None:
        self.make, self.horizon = make, horizon
        self.envs: gym.vector.VectorEnv | None = None
        self.policy: Any = None  # the one that `act` and `judge` are for
        self.episodes = Episodes()
        self.taken = 0  # vector steps since the restart, for messages

    def restart(self, seed: int) -> None:
        """Build the lanes from `seed` and start their first episodes; the open ones are given up."""
        self.close()
        self.taken = 0
        self.envs = envs = self._guarded("start", lambda: self.make(seed))
        self.mode = autoreset_mode(envs)
        self.lanes, self.shape = envs.num_envs, envs.single_observation_space.shape or ()
        first = self._shaped(self._guarded("reset", lambda: envs.reset(seed=seed))[0])
        horizon, lanes = self.horizon, self.lanes
        if not hasattr(self, "observation"):
            self.observation = np.zeros((horizon + 1, *first.shape), np.float32)  # one row more: what came last
            self.reward = np.zeros((horizon, lanes))
            self.mask = np.ones((horizon + 1, lanes), bool)
            self.terminated, self.truncated = np.zeros((2, horizon, lanes), bool)
            self.rows = torch.from_numpy(self.observation).unbind()
        self.observation[0] = self.observation[-1] = first
        self.mask[-1], self.fresh = True, np.ones(lanes, bool)
        self._finite(0)
        self.episodes.restart(lanes)

    def collect(self, policy: Policy) -> Batch:
        """`horizon` steps of every lane, with log-probabilities and values under `policy`: columns of [T, N].

        Raises EnvFailure if an environment raises or breaks its interface; NonFiniteError if it returns NaN or
        infinity.
        """
        assert self.envs is not None, "restart comes first"
        self.observation[0], self.mask[0], self.mask[1:] = self.observation[-1], self.mask[-1], True
        self.finals: Finals = {}
        noise, device, actions = policy.noise(self.horizon, self.lanes), policy.device, list[Tensor]()
        if policy is not self.policy:
            self.policy, self.act, self.judge = policy, acting(policy, self.rows[0].to(device), noise[0]), None
        for t, drawn in enumerate(noise.unbind()):
            actions.append(self.act(self.rows[t].to(device), drawn)[0])
            self._step(t, policy.to_env(actions[-1]))
        self._finite(self.horizon)
        return self._judged(self._batch(torch.stack(actions)))

    def state_tensors(self) -> dict[str, Tensor]:
        return live_tensors(episodes=self.episodes)

    def close(self) -> None:
        if self.envs is not None:
            with contextlib.suppress(Exception):  # nothing that was learned depends on it
                self.envs.close()
            self.envs = None

    def _step(self, t: int, action: np.ndarray) -> None:
        """One vector step, written into row `t` of the buffers, its observation into row t + 1.

        Where an episode ends and the next observation already belongs to a new one (under SAME_STEP and DISABLED),
        `finals` gets the final observation. Under NEXT_STEP it IS the next one, and the row after it is dead.
        """
        envs: Any = self.envs
        observation, reward, terminated, truncated, info = self._guarded("step", lambda: envs.step(action), t)
        self.taken += 1
        observation = self._shaped(observation)
        self._write("reward", self.reward, t, reward)
        self._write("terminated", self.terminated, t, terminated)
        self._write("truncated", self.truncated, t, truncated)
        ended = self.terminated[t] | self.truncated[t]
        if ended.any():
            if self.mode == AutoresetMode.NEXT_STEP:
                self.mask[t + 1] = ~(ended & self.mask[t])
            elif self.mode == AutoresetMode.SAME_STEP:
                self._remember(t, ended, announced(info))
            else:
                self._remember(t, ended, observation)
                reset = self._guarded("reset", lambda: envs.reset(options={"reset_mask": ended}))
                observation = observation.copy()
                observation[ended] = self._shaped(reset[0])[ended]
        self.observation[t + 1] = observation

    def _batch(self, action: Tensor) -> Batch:
        """The columns of the collection; dead rows have no reward and no end."""
        mask, observation = self.mask[:-1].copy(), self.observation[:-1].copy()
        reward, terminated, truncated = as_float32(self.reward * mask), self.terminated & mask, self.truncated & mask
        ended = terminated | truncated
        after = ended | ~mask  # the next row, where it is live, begins an episode
        start = np.concatenate([self.fresh[None], after[:-1]]) & mask
        self.fresh = after[-1]
        self.episodes.add(reward, mask, ended)
        columns = dict(observation=observation, mask=mask, start=start, reward=reward)
        columns |= dict(terminated=terminated, truncated=truncated)
        return Batch(action=action, **{k: torch.from_numpy(v).to(action.device) for k, v in columns.items()})

    def _judged(self, batch: Batch) -> Batch:
        """Add logp, value, next_value and the distributions `old`, in one pass over the whole collection.

        The next value of a row is the value of the next row, of what came last for the last row, and of the final
        observation where `finals` has one.
        """
        seen = batch.replace(last=self.rows[-1].to(batch.mask.device))
        self.judge = self.judge or judging(self.policy, seen)
        opinion = self.judge(seen)
        if self.finals:
            t, lane = (torch.tensor(index, device=seen.last.device) for index in zip(*self.finals, strict=True))
            with torch.no_grad():
                final = torch.as_tensor(np.stack(list(self.finals.values()))).to(seen.last)
                opinion.next_value[t, lane] = self.policy.value(final)
        return batch.replace(**vars(opinion))

    def _remember(self, t: int, ended: np.ndarray, final: Any) -> None:
        """Keep the final observations of the lanes whose episode ended."""
        for lane in np.flatnonzero(ended & self.mask[t]):
            row = as_float32(final[lane])
            if row.shape != self.observation.shape[2:]:
                raise EnvFailure(f"info['final_obs'] of lane {lane} has shape {row.shape}")
            for feature in np.flatnonzero(~np.isfinite(row)):
                where = f"in lane {lane} at step {self.taken}"
                raise NonFiniteError(f"the final observation[{feature}] is {row.flat[feature]} {where}")
            self.finals[t, int(lane)] = row.copy()

    def _guarded(self, what: str, call: Callable[[], Any], t: int | None = None) -> Any:
        try:
            return call()
        except EnvFailure:
            raise
        except Exception as error:
            if t is not None:
                self._finite(t)  # what came before may be why
            where = f"after {self.taken} steps" if what == "step" else "while starting"
            raise EnvFailure(f"the environment's {what}() raised {type(error).__name__} {where}: {error}") from error

    def _write(self, name: str, column: np.ndarray, t: int, values: Any) -> None:
        """One number (or bool) a lane, into row `t` of a buffer."""
        if np.shape(values) != (self.lanes,):
            shape = np.shape(values)
            raise EnvFailure(f"the environment returned {name} of shape {shape}, not one for each of its lanes")
        try:
            column[t] = values
        except (TypeError, ValueError) as error:
            raise EnvFailure(f"the environment returned {name} = {values!r}: {error}") from None

    def _shaped(self, observation: Any) -> np.ndarray:
        """The observation as float32, if it has the shape that its space says."""
        wanted = (self.lanes, *self.shape)
        if not isinstance(observation, np.ndarray) or observation.shape != wanted:
            shape = getattr(observation, "shape", type(observation).__name__)
            raise EnvFailure(f"the environment returned observations of shape {shape}, its space says {wanted}")
        return as_float32(observation)

    def _finite(self, upto: int) -> None:
        """NonFiniteError that names the first NaN or infinity in the buffers' first `upto` steps."""
        seen, reward = self.observation[: upto + 1], as_float32(self.reward[:upto])
        if np.isfinite(seen).all() and np.isfinite(reward).all():
            return
        before = self.taken - upto
        bad, worse = np.argwhere(~np.isfinite(seen)), np.argwhere(~np.isfinite(reward))
        if len(bad) and (not len(worse) or bad[0, 0] <= worse[0, 0] + 1):
            t, lane, feature = bad[0].tolist()[:3]
            where = f"in lane {lane} at step {before + t}"
            raise NonFiniteError(f"observation[{feature}] is {seen[t, lane, feature]} {where}")
        if len(worse):
            t, lane = worse[0].tolist()
            where = f"in lane {lane} at step {before + t + 1} of its environment"
            raise NonFiniteError(f"the reward is {reward[t, lane]} {where}")


def acting(policy: Policy, observation: Tensor, noise: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    """`policy.act` for tensors of these shapes."""

    def act(observation: Tensor, noise: Tensor) -> tuple[Tensor]:
        return (policy.act(observation, noise),)

    return fused(policy, act, [observation, noise])


def judging(policy: Policy, example: Batch) -> Callable[[Batch], Batch]:
    """`judged` for batches like this one."""

    def judge(batch: Batch) -> Batch:
        return judged(policy, batch)

    return fused_batch(policy, judge, example)


def judged(policy: Policy, batch: Batch) -> Batch:
    """What the policy thinks of a batch whose column `last` are the observations that came after it.

    The columns are logp, value, next_value and `old`, the distributions, which a bound on the update, a penalty or a
    natural gradient would else ask for again.
    """
    logp, value, distribution = policy.evaluate(batch)
    next_value = torch.cat([value[1:], policy.value(batch.last).unsqueeze(0)])
    # a clone, for a distribution may hold a parameter, which is about to change
    return Batch(logp=logp, value=value, next_value=next_value, old=tree_map(torch.clone, distribution))


def as_float32(values: Any) -> np.ndarray:
    """An array of float32; what is too large becomes infinity, and is refused as such."""
    if isinstance(values, np.ndarray) and values.dtype == np.float32:
        return values
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)


def announced(info: dict[str, Any]) -> Any:
    """The final observations that SAME_STEP lanes owe."""
    if "final_obs" not in info:
        raise EnvFailure(
            "the vector environment resets in the same step but gives no info['final_obs']: "
            "the value of a truncated episode's last state cannot be known"
        )
    return info["final_obs"]


def autoreset_mode(envs: gym.vector.VectorEnv) -> AutoresetMode:
    """What the lanes do after an episode's end, as their metadata say; EnvFailure if they do not."""
    said = envs.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(said)
    except ValueError:
        known = ", ".join(f"AutoresetMode.{mode.name}" for mode in AutoresetMode)
        advice = f"set it to one of {known} (gymnasium.vector)"
        raise EnvFailure(f"the vector environment's metadata['autoreset_mode'] is {said!r}: {advice}") from None
