"""Tuned settings, each citing its source. A preset is plain Python: a name, where it fits, and flat settings."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym

from proximo.errors import unknown
from proximo.presets.control import CONTROL
from proximo.presets.mujoco import PAPERS
from proximo.presets.preset import Preset
from proximo.presets.score import SCORE
from proximo.presets.screens import SCREENS
from proximo.presets.trust import TRUST

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (*CONTROL, *SCREENS, *PAPERS, *TRUST, *SCORE)}


def preset_for(env: str, action_space: gym.Space, algo: str) -> Preset:
    """The preset made for this algorithm and environment; else, of PPO and its like, that for its kind of action.

    Over one for any environment stands what another says of this task.
    """
    fitting = [preset for preset in PRESETS.values() if env.startswith(preset.fits)]
    made_for_it = [preset for preset in fitting if algo in preset.algos]
    of_the_task = [preset for preset in fitting if "" not in preset.fits]
    kind = PRESETS["continuous" if isinstance(action_space, gym.spaces.Box) else "discrete"]
    chosen = [*made_for_it, kind][0]
    return replace(chosen, task=of_the_task[0]) if "" in chosen.fits and of_the_task else chosen


def preset_named(name: str) -> Preset:
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]
