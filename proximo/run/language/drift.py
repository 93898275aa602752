"""How far a language model went: from itself in an update, and from the reference that it began as."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.drift import Distances, Tensors
from proximo.models.language.policy import in_pieces
from proximo.reduce import masked_mean
from proximo.reference import sequence_kl
from proximo.run.language.plan import LanguagePlan
from proximo.run.ledger import Exact, Ledger, Measure
from proximo.run.plan import Bookkeeper


def ledger_of(plan: LanguagePlan, policy: Any) -> Bookkeeper | None:
    """The guard, where a bound is asked for; else whoever writes down what is known of the drift anyway."""
    if plan.run.measures_drift:
        kl = estimated(plan.run.at_once)
        return Ledger(policy, plan.run, walked(kl), {}, kl)
    return Noted() if "ref_logp" in plan.algorithm.needs and plan.samples else None


def estimated(at_once: int | None) -> Exact:
    """Measures KL(old ‖ now) a token, nats, estimated from what was sampled: no more of the old policy is kept."""

    def kl(policy: Any, before: Tensors, batch: Batch) -> float:
        def of(part: Batch) -> Tensor:
            return part.old.kl(policy.evaluate(part).distribution)

        return masked_mean(in_pieces(batch, at_once, of, policy.vocabulary), batch.mask).item()

    return kl


def walked(kl: Exact) -> Measure:
    """Measures for the ledger, nats: KL(old ‖ now) a token; and KL(old ‖ reference) a sequence, of what sampled."""

    def made(policy: Any, reference: Tensors, example: Batch) -> Distances:
        def measured(batch: Batch) -> tuple[float, float, float]:
            return kl(policy, reference, batch), sequence_kl(batch).item(), 0.0

        return measured

    return made


class Noted:
    """Writes down how far the policy that sampled was from the reference; it bounds nothing and costs nothing."""

    strayed = False

    def __init__(self) -> None:
        self.kl_sum = torch.zeros((), dtype=torch.float64)  # as a ledger's, so that a run can go on with one
        self.drift = torch.zeros((), dtype=torch.float64)

    def state_tensors(self) -> dict[str, Tensor]:
        return {"kl_sum": self.kl_sum, "drift": self.drift}

    def settle(self, batch: Batch, live: Tensors, before: Tensors) -> dict[str, Any]:
        """The row of drift.jsonl of the update that was just made from `batch`."""
        self.drift.fill_(sequence_kl(batch).item())
        unknown = dict.fromkeys(("max_kl", "kl_asked", "kl", "kl_sum"))
        return {**unknown, "alpha": 1.0, "drift": self.drift.item()}
