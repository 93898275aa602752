"""Distributions over actions, and the heads that make them from a network's outputs.

All randomness comes from outside, as noise drawn beforehand. A head is a module, for those with parameters of their
own: `outputs` numbers of the network -> distribution; `noise(*shape, device=…)` for its samples; `to_env(action)`,
[N, ...], in the environment's units. Heads of choices take a mask as well: `head(outputs, allowed)`.

A distribution's tensors and an action's begin with the dimensions of the outputs. Where a distribution ends at the
bounds of a box, the action is what it was before it was squashed into them, any real number: so no log-probability is
that of a number that was rounded to a bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import gymnasium as gym
from torch import nn

from proximo.errors import ConfigError, UnsupportedSpace, unknown
from proximo.models.distributions.beta import Beta, BetaHead
from proximo.models.distributions.composite import Composite, CompositeHead
from proximo.models.distributions.continuous import (
    Gaussian,
    GaussianHead,
    SquashedGaussian,
    SquashedGaussianHead,
    StateGaussianHead,
)
from proximo.models.distributions.discrete import (
    Bernoulli,
    BernoulliHead,
    Categorical,
    CategoricalHead,
    MultiCategorical,
    MultiCategoricalHead,
    gumbel,
    logistic,
)

__all__ = [
    "Bernoulli",
    "BernoulliHead",
    "Beta",
    "BetaHead",
    "Categorical",
    "CategoricalHead",
    "Composite",
    "CompositeHead",
    "Gaussian",
    "GaussianHead",
    "Kind",
    "MultiCategorical",
    "MultiCategoricalHead",
    "SquashedGaussian",
    "SquashedGaussianHead",
    "StateGaussianHead",
    "gumbel",
    "head_for",
    "logistic",
]

Kind = Literal["gaussian", "squashed", "beta"]  # of a distribution over a Box
BOXES = (GaussianHead, StateGaussianHead, BetaHead)
CHOICES: dict[type[gym.Space], type[nn.Module]] = {
    gym.spaces.Discrete: CategoricalHead,
    gym.spaces.MultiDiscrete: MultiCategoricalHead,
    gym.spaces.MultiBinary: BernoulliHead,
}


def head_for(
    space: gym.Space, kind: Kind = "gaussian", state_std: bool = False, log_std_init: float = 0.0
) -> nn.Module:
    """The head for an action space, whose Boxes, at any depth, get distributions of this kind.

    `state_std`: the network gives the deviations of the gaussian kinds, else they are parameters; either way they
    begin at exp(log_std_init). UnsupportedSpace names a space that is not served, or that the kind does not fit;
    ConfigError a kind or a deviation that there is nothing for.
    """
    if kind not in get_args(Kind):
        raise unknown("kind of distribution", kind, get_args(Kind))
    if kind == "beta" and state_std:
        raise ConfigError("state_std is set, but distribution beta has no deviation: leave it out, or take another")

    def box_head(box: gym.spaces.Box) -> nn.Module:
        if kind == "beta":
            return BetaHead(box)
        base = (StateGaussianHead if state_std else GaussianHead)(box, log_std_init)
        return SquashedGaussianHead(box, base) if kind == "squashed" else base

    head = built(space, box_head)
    if (kind != "gaussian" or state_std) and not any(isinstance(module, BOXES) for module in head.modules()):
        asked = "state_std is set" if kind == "gaussian" else f"distribution is {kind}"
        raise ConfigError(f"{asked}, but action space {space} has no Box: leave it out")
    return head


def built(space: gym.Space, box_head: Callable[[gym.spaces.Box], nn.Module]) -> nn.Module:
    """The head for a space, made of those of its parts."""
    if isinstance(space, gym.spaces.Dict) and space.spaces:
        return CompositeHead({key: built(part, box_head) for key, part in space.spaces.items()})
    if isinstance(space, gym.spaces.Tuple) and space.spaces:
        return CompositeHead(tuple(built(part, box_head) for part in space.spaces))
    if 0 not in (space.shape or ()):
        if isinstance(space, gym.spaces.Box):
            return box_head(space)
        for kind, head in CHOICES.items():
            if isinstance(space, kind):
                return head(space)
    served = ", ".join(kind.__name__ for kind in (*CHOICES, gym.spaces.Box, gym.spaces.Dict, gym.spaces.Tuple))
    raise UnsupportedSpace(f"action space {space} is not supported yet (supported: {served}, of at least one number)")
