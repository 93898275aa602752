"""The registry of language's algorithms: a name on the command line, a class here.

Each is an `Algorithm` made from (policy, config); `Config` are its numbers, `learns_from` what it steps on:
"completions" that the policy sampled, "pairs" of which one side is preferred, or "texts".
"""

from __future__ import annotations

from typing import Any

from proximo.algorithms.language.asymmetric import AsymmetricPPO
from proximo.algorithms.language.cispo import CISPO
from proximo.algorithms.language.dapo import DAPO
from proximo.algorithms.language.dpo import DPO
from proximo.algorithms.language.dr_grpo import DrGRPO
from proximo.algorithms.language.grpo import GRPO
from proximo.algorithms.language.gspo import GSPO
from proximo.algorithms.language.ipo import IPO
from proximo.algorithms.language.reinforce_pp import ReinforcePP
from proximo.algorithms.language.reward_model import RewardModel
from proximo.algorithms.language.rlhf import RLHF
from proximo.algorithms.language.rloo import RLOO
from proximo.algorithms.language.sft import SFT
from proximo.errors import unknown

LANGUAGE: dict[str, Any] = {
    "sft": SFT,
    "reward": RewardModel,
    "ppo": RLHF,
    "grpo": GRPO,
    "dr_grpo": DrGRPO,
    "dapo": DAPO,
    "rloo": RLOO,
    "reinforce_pp": ReinforcePP,
    "gspo": GSPO,
    "cispo": CISPO,
    "dpo": DPO,
    "ipo": IPO,
    "asymmetric_ppo": AsymmetricPPO,
}


def language_algorithm(name: str) -> Any:
    """The class registered under a name; UnknownName suggests close ones."""
    if name not in LANGUAGE:
        raise unknown("language algorithm", name, LANGUAGE)
    return LANGUAGE[name]
