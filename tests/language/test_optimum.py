"""What algorithms learn, against the optimum that is known in closed form: π* ∝ π_ref e^{r/β}."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from proximo.algorithms.language import LANGUAGE
from tests.language.enumerable import SYMBOLS, TOKENS, Tabular, collected, divergence, optimum

BETA, LANES = 0.5, 4096
NUMBERS: dict[str, dict[str, Any]] = {
    "rloo": {},
    "grpo": dict(kl_in="reward"),
    "ppo": dict(value_coef=0.5, value_clip=None),
    "dr_grpo": dict(kl_in="reward", max_length=TOKENS),
    "reinforce_pp": {},
    "dapo": dict(kl_in="reward"),
    "cispo": dict(kl_in="reward"),
    "gspo": dict(kl_in="reward", clip=0.1, clip_high=0.1),  # 3e-4 is for long sequences
    "asymmetric_ppo": dict(value_coef=0.5, value_clip=None, entropy_coef=0.0, agree=0.0),
}


def distance_after(name: str, updates: int) -> tuple[float, float]:
    """KL(π ‖ π*) in nats before and after."""
    torch.manual_seed(0)
    reference, policy = Tabular(seed=1, scale=0.5), Tabular(seed=1, scale=0.5, critics=2)
    policy.logits.data.copy_(reference.logits.data)
    reward = torch.randn(SYMBOLS**TOKENS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    best = optimum(reference, reward, BETA)
    before = divergence(policy, best)
    algorithm = LANGUAGE[name]
    numbers = dict(beta=BETA, lr=0.1, max_grad_norm=1e9, epochs=2) | NUMBERS[name]
    learner = algorithm(policy, algorithm.Config(**numbers))
    place, prompt = SYMBOLS ** torch.arange(TOKENS - 1, -1, -1), torch.zeros(LANES, dtype=torch.int64)
    for update in range(updates):
        action = policy.sample(prompt)
        score = reward[(action * place.unsqueeze(1)).sum(0)]
        learner.step(collected(policy, reference, action, prompt, score), update / updates)
    return before, divergence(policy, best)


@pytest.mark.parametrize("name", ["rloo", "grpo", "ppo"])
def test_finds_the_optimum(name: str) -> None:
    before, after = distance_after(name, updates=150)
    assert before > 1
    assert after < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", NUMBERS)
def test_stays_at_the_optimum(name: str) -> None:
    assert distance_after(name, updates=300)[1] < 0.02
