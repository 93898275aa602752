"""PPO-Penalty: the surrogate with an adaptive KL penalty (Schulman et al. 2017, arXiv:1707.06347, eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.advantages import explained_variance, gae, standardize
from proximo.algorithms.config import Proximal
from proximo.batch import Batch
from proximo.checks import check, within
from proximo.coefficients import Coefficient, steered
from proximo.drift import backtrack, kl
from proximo.models.normalize import reward_scale
from proximo.objectives import entropy, kl_old, surrogate, value_error
from proximo.policy import Policy
from proximo.state import live_tensors
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd

LEAST, MOST = 2.0**-20, 2.0**20  # of β


@dataclass(frozen=True)
class PenaltyConfig(Proximal):
    """The penalty's own numbers."""

    target_kl: float = 0.01
    """d_targ: the exact KL(old ‖ new), nats, an update should reach; β doubles above 1.5 d, halves below d / 1.5."""
    beta: float = 1.0
    """β at the start."""
    backtrack_above: float = 4.0
    """An update that goes further than this many times target_kl is taken back until it does not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, positive=("target_kl", "beta", "backtrack_above"))
        within("beta", self.beta, LEAST, MOST)


class Penalty:
    """PPO with −r A + β KL(π_old ‖ π) instead of the clipped surrogate, β led by the KL that updates reach."""

    Config = PenaltyConfig

    def __init__(self, policy: Policy, config: PenaltyConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = Adam(policy, eps=1e-5, betas=config.betas)
        self.reward_scale = reward_scale(config, policy.device)
        self.beta = Coefficient("beta", config.beta)
        penalised = surrogate() + self.beta * kl_old()
        self.objective = penalised + config.value_coef * value_error() - config.entropy_coef * entropy()

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        lr = self.optimizer.lr = c.lr_at(progress)
        batch = self.beta.on(gae(self.reward_scale(batch), c.gamma, c.lam))
        before = {name: tensor.clone() for name, tensor in self.optimizer.state.items()}
        passes = c.epochs, c.minibatches, c.max_grad_norm
        report = sgd(self.policy, self.optimizer, self.objective, batch, *passes, standardize)
        beta, reached = self.beta.value, kl(self.policy, batch).item()
        self.beta.value = steered(beta, reached, c.target_kl, band=1.5, factor=2, least=LEAST, most=MOST)
        drift = {"beta": beta, "kl_after": self.backtracked(batch, before, reached)}
        return {**report, **drift, "explained_variance": explained_variance(batch), "lr": lr}

    def backtracked(self, batch: Batch, before: dict[str, Tensor], reached: float) -> float:
        """Go back towards what was before until the bound holds, forgetting this update's gradients; the KL then."""
        bound = self.config.backtrack_above * self.config.target_kl
        if reached <= bound:
            return reached
        live = {"vector": self.optimizer.state["vector"]}
        self.optimizer.restore(before | live)
        return backtrack(live, before, reached, lambda: kl(self.policy, batch).item(), bound)[1]

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer, reward_scale=self.reward_scale, beta=self.beta)
