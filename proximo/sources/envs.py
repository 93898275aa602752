"""Experience from environments: vector environments of any autoreset mode, one Batch at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from proximo import ranks
from proximo.batch import Batch, leaves_of
from proximo.errors import EnvFailure, NonFiniteError, ProximoError
from proximo.observations import MASK, choices
from proximo.policy import Policy
from proximo.sources.acting import Actor, Leaves, casting, noise_for, stacked
from proximo.sources.buffers import Observations, as_float32
from proximo.sources.episodes import Episodes
from proximo.state import live_tensors

MakeEnvs = Callable[[int], gym.vector.VectorEnv]
Finals = dict[tuple[int, int], list[Tensor]]  # (step, lane): what an episode ended with, and what was remembered then


class EnvSource:
    """Collects `horizon` steps from every lane of a vector environment.

    `make(seed)` builds the lanes anew. `restart(seed)` is called before the first collection and at every checkpoint:
    the lanes are rebuilt from the seed alone, so that a resumed run meets the same episodes as one that never stopped.

    Where there are several ranks, each steps as many lanes, and `collect` gives all of them: [T, ranks · N]. `before`
    are how many lanes come before this rank's; the i-th of all has the seed + i.
    """

    def __init__(self, make: MakeEnvs, horizon: int, before: int = 0) -> None:
        self.make, self.horizon, self.before = make, horizon, before
        self.envs: gym.vector.VectorEnv | None = None
        self.actor: Any = None  # an Actor, once something was collected
        self.episodes = Episodes()
        self.taken = 0  # vector steps since the restart, for messages

    def restart(self, seed: int) -> None:
        """Build the lanes from `seed` and start their first episodes; the open ones are given up."""
        self.close()
        self.taken, seed = 0, seed + self.before
        self.envs = envs = self.guarded("start", lambda: self.make(seed))
        self.mode = autoreset_mode(envs)
        self.lanes = envs.num_envs
        first, *told = self.guarded("reset", lambda: envs.reset(seed=seed))
        horizon, lanes = self.horizon, self.lanes
        if not hasattr(self, "seen"):
            self.seen = Observations(envs.single_observation_space, lanes, horizon, choices(envs.single_action_space))
            self.reward = np.zeros((horizon, lanes))
            self.mask = np.ones((horizon + 1, lanes), bool)
            self.terminated, self.truncated = np.zeros((2, horizon, lanes), bool)
            self.score = self.over = None  # of games, where these are not what is learned from
            if envs.metadata.get("scored"):
                self.score, self.over = np.zeros((horizon, lanes)), np.zeros((horizon, lanes), bool)
        self._must_show_masks(told[0] if told else {})
        self.seen.write(0, first)
        self.seen.write(-1, first)
        self.mask[-1], self.fresh = True, np.ones(lanes, bool)
        self._finite(0)
        self.episodes.restart(lanes * ranks.size())
        if self.actor is not None:
            self.actor.forget()

    def collect(self, policy: Policy) -> Batch:
        """`horizon` steps of every lane, with log-probabilities and values under `policy`: columns of [T, N].

        Raises EnvFailure if an environment raises or breaks its interface; NonFiniteError if it returns NaN or
        infinity.
        """
        self.begin(policy, noise_for(policy, self.horizon, self.lanes))
        envs: Any = self.envs
        with casting(self.device):
            for t in range(self.horizon):
                self.take(t, self.guarded("step", partial(envs.step, self.act(t)), t))
        batch = self.finish()
        self.episodes.add_everyones(*self.played)
        return batch.map(lambda x: ranks.gathered(x, self.lanes * ranks.size(), 1))

    def begin(self, policy: Policy, noise: Any) -> None:
        """Make ready for a collection whose actions have this randomness, [T, N, ...]."""
        assert self.envs is not None, "restart comes first"
        self.seen.again()
        self.mask[0], self.mask[1:] = self.mask[-1], True
        self.finals, self.actions = Finals(), list[Leaves]()
        self.drawn = list(zip(*(leaf.unbind() for leaf in leaves_of(noise)), strict=True))
        if self.actor is None or policy is not self.actor.policy:
            self.device = policy.device
            self.actor = Actor(policy, self.lanes, self.seen.tree(self.shown(0)), noise)

    def act(self, t: int) -> np.ndarray:
        """The actions of step `t`, for the environments."""
        self.actions.append(self.actor.choose(t, self.shown(t), self.drawn[t], self._begun))
        self.seen.must_allow(t, self.mask[t], self.taken, self.before)
        return self.actor.policy.to_env(self.actor.action(self.actions[-1]))

    def take(self, t: int, made: tuple[Any, Any, Any, Any, dict[str, Any]]) -> None:
        """What step `t` made, written into row `t` of the buffers, its observation into row t + 1.

        Where an episode ends and the next observation already belongs to a new one (under SAME_STEP and DISABLED),
        `finals` gets the final observation. Under NEXT_STEP it IS the next one, and the row after it is dead.
        """
        observation, reward, terminated, truncated, info = made
        self.taken += 1
        self._must_show_masks(info)
        self._write("reward", self.reward, t, reward)
        self._write("terminated", self.terminated, t, terminated)
        self._write("truncated", self.truncated, t, truncated)
        self.seen.write(t + 1, observation)
        if self.score is not None and self.over is not None:
            self._write("score", self.score, t, info.get("score"))
            self._write("over", self.over, t, info.get("over"))
        ended = self.terminated[t] | self.truncated[t]
        if ended.any():
            if self.mode == AutoresetMode.NEXT_STEP:
                self.mask[t + 1] = ~ended  # also where the end is a dead row's: after a life games may be over there
            elif self.mode == AutoresetMode.SAME_STEP:
                final = announced(info)
                self._remember(t, ended, lambda lane, where: self.seen.one(final[lane], where))
            else:
                self._remember(t, ended, lambda lane, where: self.seen.lane(t + 1, lane, where))
                envs: Any = self.envs
                reset = self.guarded("reset", lambda: envs.reset(options={"reset_mask": ended}))
                self.seen.repair(t + 1, reset[0], ended)

    def finish(self) -> Batch:
        """The collection, of this process's lanes, once all its steps were taken."""
        self._finite(self.horizon)
        batch = self._batch(stacked(self.actor.outline, self.actions))
        batch = self.actor.judged(batch, self.seen.tree(self.shown(-1)), self._begun(self.horizon))
        if self.finals:
            self._correct(batch.next_value)
        return batch

    def shown(self, t: int) -> list[Tensor]:
        """What the policy sees at step `t`, leaf by leaf."""
        return self.seen.rows[t] if self.device.type == "cpu" else [row.to(self.device) for row in self.seen.rows[t]]

    def _begun(self, t: int) -> Tensor:
        """The lanes [N] bool in which an episode begins at step `t`."""
        after = self.fresh if t == 0 else self.terminated[t - 1] | self.truncated[t - 1] | ~self.mask[t - 1]
        return torch.from_numpy(after & self.mask[t]).to(self.device)

    def state_tensors(self) -> dict[str, Tensor]:
        return live_tensors(episodes=self.episodes)

    def close(self) -> None:
        if self.envs is not None:
            with contextlib.suppress(Exception):  # nothing that was learned depends on it
                self.envs.close()
            self.envs = None

    def _batch(self, action: Any) -> Batch:
        """The columns of the collection; dead rows have no reward and no end."""
        mask = self.mask[:-1].copy()
        reward, terminated, truncated = as_float32(self.reward * mask), self.terminated & mask, self.truncated & mask
        ended = terminated | truncated
        after = ended | ~mask  # the next row, where it is live, begins an episode
        start = np.concatenate([self.fresh[None], after[:-1]]) & mask
        self.fresh = after[-1]
        if self.score is None or self.over is None:
            self.played = reward, mask, ended
        else:
            # where only a life ended, the row after it is no transition to learn from, and still pays
            self.played = as_float32(self.score), mask, self.over
        columns = dict(mask=mask, start=start, reward=reward, terminated=terminated, truncated=truncated)
        flat = {name: torch.from_numpy(column) for name, column in columns.items()}
        return Batch(observation=self.seen.column(), action=action, **flat).to(self.device)

    def _correct(self, next_value: Tensor) -> None:
        """Put in the values of the final observations, where what follows belongs to another episode."""
        t, lane = (torch.tensor(index, device=self.device) for index in zip(*self.finals, strict=True))
        leaves = [torch.stack(leaf).to(self.device) for leaf in zip(*self.finals.values(), strict=True)]
        count = len(self.seen.leaves)
        next_value[t, lane] = self.actor.values(self.seen.tree(leaves[:count]), leaves[count:])

    def _remember(self, t: int, ended: np.ndarray, final: Callable[[int, str], list[Tensor]]) -> None:
        """Keep the final observations of the lanes whose episode ended."""
        remembered = self.actor.remembered if self.actor is not None else lambda lane: ()
        for lane in np.flatnonzero(ended & self.mask[t]):
            shown = final(int(lane), f"in lane {self.before + lane} at step {self.taken}")
            self.finals[t, int(lane)] = [*shown, *remembered(int(lane))]

    def _must_show_masks(self, info: Any) -> None:
        """EnvFailure for a mask in `info` that no policy would see."""
        if self.seen.allowed is None and isinstance(info, dict) and MASK in info:
            when, advice = f"after {self.taken} steps", "say it from the first reset on, or put it into what is seen"
            raise EnvFailure(f'the environment says info["{MASK}"] {when}, and showed none before: {advice}')

    def guarded(self, what: str, call: Callable[[], Any], t: int | None = None) -> Any:
        try:
            return call()
        except ProximoError:
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

    def _finite(self, upto: int) -> None:
        """NonFiniteError that names the first NaN or infinity in the buffers' first `upto` steps."""
        reward, bad = as_float32(self.reward[:upto]), self.seen.culprit(upto)
        if bad is None and np.isfinite(reward).all():
            return
        before, worse = self.taken - upto, np.argwhere(~np.isfinite(reward))
        if bad is not None and (not len(worse) or bad[0] <= worse[0, 0] + 1):
            t, lane, what = bad
            raise NonFiniteError(f"{what} in lane {self.before + lane} at step {before + t}")
        t, lane = worse[0].tolist()
        raise NonFiniteError(
            f"the reward is {reward[t, lane]} in lane {self.before + lane} at step {before + t + 1} of its environment"
        )


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
