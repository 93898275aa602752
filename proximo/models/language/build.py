"""From what a run asks for to its policy: model, reference, critic."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

from proximo.errors import ConfigError
from proximo.models.language.critic import Critic
from proximo.models.language.hub import causal_model, folder_of, keep_less, learner, saves, trunk_of, width_of
from proximo.models.language.policy import LanguagePolicy
from proximo.models.language.reward import RewardModel

CriticKind = Literal["none", "shared", "separate", "mini"]
SPREAD = 0.02  # of the first weights of several critics' heads


def language_policy(
    path: Path,
    critic: CriticKind = "none",
    critic_model: str | None = None,
    reference: bool = True,
    lora: int | None = None,
    temperature: float = 1.0,
    precision: str = "float32",
    checkpointing: bool = False,
    device: str = "cpu",
) -> LanguagePolicy:
    """The policy of a run that begins with the model in a folder.

    The reference is a copy of that model as it is (not one loaded by a name that it carries), or, with adapters, the
    model while they are switched off. A `separate` critic has a trunk of its own, `mini` are two of half the layers
    (Asymmetric PPO), each the model's own first layers or those of `critic_model`.
    """
    model = learner(path, lora, checkpointing).to(device)
    kept: Any = None
    if reference:
        kept = copy.deepcopy(model).requires_grad_(False) if lora is None else model.disable_adapter
    judge = critic_of(critic, path, critic_model, width_of(model), checkpointing)
    policy = LanguagePolicy(model, kept, judge, temperature, precision, saves(lora)).to(device)
    for learning in (policy.model, *(policy.critic.trunks if policy.critic is not None else ())):
        learning.train(checkpointing)
    return policy


def reward_model(
    path: Path, lora: int | None = None, precision: str = "float32", checkpointing: bool = False, device: str = "cpu"
) -> RewardModel:
    """The reward model of a run that begins with the model in a folder."""
    model = RewardModel(learner(path, lora, checkpointing), precision, saves(lora)).to(device)
    model.trunk.train(checkpointing)
    return model


def critic_of(kind: CriticKind, path: Path, other: str | None, width: int, checkpointing: bool) -> Critic | None:
    """The critic that was asked for."""
    if kind in ("none", "shared"):
        if other is not None:
            raise ConfigError(f"critic_model is {other}, but the critic is {kind}: ask for separate or mini")
        return Critic(width) if kind == "shared" else None
    source = path if other is None else folder_of(other)
    count, layers = (2, None) if kind == "mini" else (1, None)
    if kind == "mini" and other is None:
        layers = max(1, causal_model(path).config.num_hidden_layers // 2)
    models = [causal_model(source, layers) for _ in range(count)]
    for model in models if checkpointing else ():
        keep_less(model)
    return Critic(width_of(models[0]), [trunk_of(model) for model in models], SPREAD if count > 1 else 0.0)
