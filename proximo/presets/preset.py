"""What a preset is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

PROXIMAL = (
    "ppo", "penalty", "fixed_kl", "unconstrained", "dual_clip", "adaptive_clip", "adaptive_lr", "fisher_rao",
    "recompute", "reuse",
)  # fmt: skip

# Settings that say something of the task, whatever learns it.
TASK = (
    "steps", "max_episode_steps", "env_options", "gamma", "normalize_observation", "normalize_reward", "images",
    "frame_stack",
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """Settings for some algorithms on the environments it names; for any other algorithm, what the task asks for."""

    name: str
    source: str
    fits: tuple[str, ...]  # beginnings of environment ids
    settings: dict[str, Any]
    algos: tuple[str, ...] = PROXIMAL
    task: Preset | None = None  # made for other algorithms; what it says of the task stands over the settings

    def settings_for(self, algo: str, known: Collection[str]) -> dict[str, Any]:
        """What an algorithm with these settings takes from it: all that it knows, or of the task alone."""
        names = self.settings if algo in self.algos else TASK
        taken = {name: value for name, value in self.settings.items() if name in names and name in known}
        return taken | ({} if self.task is None else self.task.settings_for(algo, known))
