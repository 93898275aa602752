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

from proximo.batch import Batch
from proximo.errors import EnvFailure, NonFiniteError
from proximo.policy import Policy
from proximo.sources.episodes import Episodes
from proximo.state import live_tensors

MakeEnvs = Callable[[int], gym.vector.VectorEnv]


class EnvSource:
    """Collects `horizon` steps from every lane of a vector environment.

    `make(seed)` builds the lanes anew. `restart(seed)` is called before the first collection and at every checkpoint:
    the lanes are rebuilt from the seed alone, so that a resumed run meets the same episodes as one that never stopped.
    """

    def __init__(self, make: MakeEnvs, horizon: int) -> None:
        self.make, self.horizon = make, horizon
        self.envs: gym.vector.VectorEnv | None = None
        self.episodes = Episodes()
        self.taken = 0  # vector steps since the restart, for messages

    def restart(self, seed: int) -> None:
        """Build the lanes from `seed` and start their first episodes; the open ones are given up."""
        self.close()
        self.taken = 0
        self.envs = envs = self._guarded("start", lambda: self.make(seed))
        self.mode = autoreset_mode(envs)
        lanes = envs.num_envs
        self.observation = self._checked(self._guarded("reset", lambda: envs.reset(seed=seed))[0])
        self.ended = np.ones(lanes, bool)  # the lane's last step ended an episode (or nothing came before)
        self.dead = np.zeros(lanes, bool)  # the lane's next step only resets: its row is no transition
        self.episodes.restart(lanes)

    def collect(self, policy: Policy) -> Batch:
        """`horizon` steps of every lane, with log-probabilities and values under `policy`: columns of [T, N].

        Raises EnvFailure if an environment raises or breaks its interface; NonFiniteError if it returns NaN or
        infinity.
        """
        assert self.envs is not None, "restart comes first"
        horizon, lanes, device = self.horizon, self.envs.num_envs, policy.device
        observations = torch.empty(horizon + 1, lanes, *self.observation.shape[1:])
        reward = np.zeros((horizon, lanes), np.float32)
        mask, start, terminated, truncated = (np.zeros((horizon, lanes), bool) for _ in range(4))
        finals: dict[tuple[int, int], np.ndarray] = {}
        actions: list[Tensor] = []
        noise = policy.noise(horizon, lanes)
        observations[0] = torch.as_tensor(self.observation)
        for t in range(horizon):
            actions.append(policy.act(observations[t].to(device), noise[t]))
            mask[t] = live = ~self.dead
            start[t] = self.ended & live
            reward[t], terminated[t], truncated[t], final = self._step(policy.to_env(actions[-1]), live)
            observations[t + 1] = torch.as_tensor(self.observation)
            finals |= {(t, lane): row for lane, row in final.items()}
        self.episodes.add(reward, mask, terminated | truncated)
        batch = Batch(
            observation=observations[:-1],
            action=torch.stack(actions),
            mask=torch.as_tensor(mask),
            start=torch.as_tensor(start),
            reward=torch.as_tensor(reward),
            terminated=torch.as_tensor(terminated),
            truncated=torch.as_tensor(truncated),
        ).to(device)
        return evaluated(policy, batch, observations[-1].to(device), finals)

    def state_tensors(self) -> dict[str, Tensor]:
        return live_tensors(episodes=self.episodes)

    def close(self) -> None:
        if self.envs is not None:
            with contextlib.suppress(Exception):  # nothing that was learned depends on it
                self.envs.close()
            self.envs = None

    def _step(
        self, action: np.ndarray, live: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """One vector step: reward, terminated, truncated (all zero in dead rows) and the final observations.

        Final observations are given for the lanes whose next observation already belongs to a new episode: under
        SAME_STEP and DISABLED. Under NEXT_STEP the final observation IS the next one, and the row after it is dead.
        """
        envs = self.envs
        assert envs is not None
        observation, reward, terminated, truncated, info = self._guarded("step", lambda: envs.step(action))
        self.taken += 1
        observation = self._checked(observation)
        reward = self._column("reward", reward, np.float32)
        terminated, truncated = self._column("terminated", terminated, bool), self._column("truncated", truncated, bool)
        if not np.isfinite(reward).all():
            lane = int(np.flatnonzero(~np.isfinite(reward))[0])
            raise NonFiniteError(f"the reward is {reward[lane]} in lane {lane} at step {self.taken} of its environment")
        reward, terminated, truncated = reward * live, terminated & live, truncated & live
        self.ended = ended = terminated | truncated
        if self.mode == AutoresetMode.NEXT_STEP:
            self.ended, self.dead, final = ended | ~live, ended, {}
        elif not ended.any():
            final = {}
        elif self.mode == AutoresetMode.SAME_STEP:
            final = self._announced(ended, info)
        else:
            final = {int(lane): observation[lane].copy() for lane in np.flatnonzero(ended)}
            options = {"reset_mask": ended}
            fresh = self._checked(self._guarded("reset", lambda: envs.reset(options=options))[0])
            observation = np.where(ended.reshape(-1, *[1] * (observation.ndim - 1)), fresh, observation)
        self.observation = observation
        return reward, terminated, truncated, final

    def _announced(self, ended: np.ndarray, info: dict[str, Any]) -> dict[int, np.ndarray]:
        if "final_obs" not in info:
            raise EnvFailure(
                "the vector environment resets in the same step but gives no info['final_obs']: "
                "the value of a truncated episode's last state cannot be known"
            )
        final = {int(lane): np.asarray(info["final_obs"][lane], np.float32) for lane in np.flatnonzero(ended)}
        for lane, row in final.items():
            if row.shape != self.observation.shape[1:]:
                raise EnvFailure(f"info['final_obs'] of lane {lane} has shape {row.shape}")
            if not np.isfinite(row).all():
                raise NonFiniteError(f"the final observation holds NaN or infinity in lane {lane}, step {self.taken}")
        return final

    def _guarded(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except EnvFailure:
            raise
        except Exception as error:
            where = f"after {self.taken} steps" if what == "step" else "while starting"
            raise EnvFailure(f"the environment's {what}() raised {type(error).__name__} {where}: {error}") from error

    def _column(self, name: str, values: Any, dtype: type[Any]) -> np.ndarray:
        """One number (or bool) a lane."""
        assert self.envs is not None
        try:
            with np.errstate(over="ignore"):  # becomes infinity, and is refused as such
                column = np.asarray(values, dtype)
        except (TypeError, ValueError) as error:
            raise EnvFailure(f"the environment returned {name} = {values!r}: {error}") from None
        if column.shape != (self.envs.num_envs,):
            raise EnvFailure(f"the environment returned {name} of shape {column.shape}, not one for each of its lanes")
        return column

    def _checked(self, observation: Any) -> np.ndarray:
        """The observation, or an error that names the lane, the step and the value. A sum witnesses every NaN."""
        assert self.envs is not None
        wanted = (self.envs.num_envs, *(self.envs.single_observation_space.shape or ()))
        if not isinstance(observation, np.ndarray) or observation.shape != wanted:
            shape = getattr(observation, "shape", type(observation).__name__)
            raise EnvFailure(f"the environment returned observations of shape {shape}, its space says {wanted}")
        if observation.dtype == np.float64:
            with np.errstate(over="ignore"):  # becomes infinity, and is refused as such
                observation = observation.astype(np.float32)
        if not np.isfinite(observation.sum()) and not np.isfinite(observation).all():
            lane, feature = np.argwhere(~np.isfinite(observation))[0].tolist()[:2]
            value = observation[lane, feature]
            raise NonFiniteError(f"observation[{feature}] is {value} in lane {lane} at step {self.taken}")
        return observation


def autoreset_mode(envs: gym.vector.VectorEnv) -> AutoresetMode:
    """What the lanes do after an episode's end, as their metadata say; EnvFailure if they do not."""
    said = envs.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(said)
    except ValueError:
        known = ", ".join(f"AutoresetMode.{mode.name}" for mode in AutoresetMode)
        advice = f"set it to one of {known} (gymnasium.vector)"
        raise EnvFailure(f"the vector environment's metadata['autoreset_mode'] is {said!r}: {advice}") from None


@torch.no_grad()
def evaluated(policy: Policy, batch: Batch, last: Tensor, finals: dict[tuple[int, int], np.ndarray]) -> Batch:
    """Add logp, value and next_value, in one pass over the whole collection.

    The next value of a row is the value of the next row, of `last` [N, ...] for the last row, and of the final
    observation where `finals` has one.
    """
    opinion = policy.evaluate(batch)
    next_value = torch.cat([opinion.value[1:], policy.value(last).unsqueeze(0)])
    if finals:
        t, lane = (torch.tensor(index, device=policy.device) for index in zip(*finals, strict=True))
        rows = torch.as_tensor(np.stack(list(finals.values())), dtype=torch.float32, device=policy.device)
        next_value[t, lane] = policy.value(rows)
    return batch.replace(logp=opinion.logp, value=opinion.value, next_value=next_value)
