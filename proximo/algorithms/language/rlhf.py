"""PPO from human feedback (Ziegler et al. 2019, arXiv:1909.08593; Ouyang et al. 2022, arXiv:2203.02155, eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.advantages import decoupled_gae, explained_variance, length_adaptive, monte_carlo
from proximo.algorithms.language.rlhf_config import RLHFConfig
from proximo.batch import Batch
from proximo.coefficients import Coefficient, proportional
from proximo.objectives import clip, entropy, value_error
from proximo.policy import Policy
from proximo.reduce import live_lanes, whiten
from proximo.reference import sequence_kl
from proximo.state import live_tensors


class RLHF:
    """The clipped surrogate of GAE's whitened advantages, each token's KL to the reference in its reward."""

    Config, learns_from = RLHFConfig, "completions"

    def __init__(self, policy: Policy, config: RLHFConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = config.adam(policy, eps=1e-5, epsilon_hat=config.epsilon_hat)
        self.beta = Coefficient("beta", config.beta)
        self.updates = torch.zeros((), dtype=torch.int64)
        self.value_loss = config.value_coef * value_error(config.value_clip)
        surrogate = config.near_reference(clip(config.clip, config.clip_high), beta=self.beta)
        self.objective = config.exploring(surrogate + self.value_loss, entropy())

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        warming = self.updates.item() < c.value_warmup
        self.updates += 1
        batch = self.beta.on(batch)
        seen = self.led(batch, still=warming)
        batch = c.rewarded(batch, seen.get("beta"))
        if c.whiten_rewards:
            batch = batch.replace(reward=whiten(batch.reward, batch.mask, shift=False))
        batch = monte_carlo(batch, c.gamma) if warming else self.estimated(batch)
        objective = self.value_loss if warming else self.objective
        report = c.descend(self.policy, self.optimizer, objective, c.corrected(batch), progress)
        return {**report, **seen, "explained_variance": explained_variance(batch)}

    def estimated(self, batch: Batch) -> Batch:
        """With advantages and returns, each by its own λ."""
        c = self.config
        lam = c.lam if c.length_alpha is None else length_adaptive(batch, c.length_alpha)
        batch = decoupled_gae(batch, c.gamma, lam, c.lam if c.critic_lam is None else c.critic_lam)
        return batch.replace(advantage=whiten(batch.advantage, batch.mask)) if c.whiten_advantages else batch

    def led(self, batch: Batch, still: bool) -> dict[str, float]:
        """The KL of this collection and the β it is learned with, which leads the next one's where a target is set."""
        c, beta = self.config, self.beta.value
        if not c.beta:
            return {}
        kl = sequence_kl(batch).item()
        if c.target_kl is not None and not still:
            lanes = int(live_lanes(batch.mask).sum())
            self.beta.value = proportional(beta, kl, c.target_kl, lanes, c.kl_horizon)
        return {"sequence_kl": kl, "beta": beta}

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer, beta=self.beta) | {"updates": self.updates}
