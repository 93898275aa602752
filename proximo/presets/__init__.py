"""Tuned settings, each citing its source. A preset is plain Python: a name, where it fits, and flat settings."""

from __future__ import annotations

import gymnasium as gym

from proximo.errors import unknown
from proximo.presets.control import CONTROL
from proximo.presets.preset import Preset

PRESETS: dict[str, Preset] = {preset.name: preset for preset in CONTROL}


def preset_for(env: str, action_space: gym.Space, algo: str) -> Preset:
    """The preset whose environments include this id, rather one made for the algorithm; else that for its actions."""
    fitting = [preset for preset in PRESETS.values() if env.startswith(preset.fits)]
    fitting.sort(key=lambda preset: algo not in preset.algos)
    return fitting[0] if fitting else PRESETS["continuous" if isinstance(action_space, gym.spaces.Box) else "discrete"]


def preset_named(name: str) -> Preset:
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]
