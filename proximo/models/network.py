"""What a policy's network is asked to be."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from proximo.errors import ConfigError
from proximo.models.distributions import Kind

SEQUENCE = 16  # steps, where nothing else is asked for and the horizon has as many


@dataclass(frozen=True)
class Network:
    """The shape of the policy's network."""

    hidden: tuple[int, ...] = (64, 64)
    """Units in each hidden layer, of the actor and of the critic alike."""

    activation: Literal["tanh", "relu", "elu", "silu"] = "tanh"
    """What stands between the layers."""

    layer_norm: bool = False
    """A LayerNorm before each activation."""

    normalize_observation: bool = False
    """Centre and scale observations by running statistics, clipped to ±10; they travel with the policy."""

    images: Literal["auto", "nature", "impala", "numbers"] = "auto"
    """The network for images: auto is nature from 64 pixels a side on, impala below; numbers takes them as a vector."""

    channels: Literal["auto", "first", "last"] = "auto"
    """Where an image's colours are: first (C×H×W), last (H×W×C), or whichever side is the shortest."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """What image networks multiply in; weights stay float32. bfloat16 is faster where the processor knows it."""

    frame_stack: int = 1
    """Observations that the policy sees together: the last ones of the episode, this one among them."""

    trunk: Literal["auto", "shared", "separate"] = "auto"
    """Whether actor and critic share what lies below their layers: auto shares what is learned there,
    except where a trust region forbids it."""

    memory: Literal["none", "lstm", "gru", "transformer"] = "none"
    """What the policy remembers an episode with."""

    memory_size: int = 128
    """Numbers in a memory's state."""

    memory_window: int = 32
    """Steps of the past that a layer of the transformer sees."""

    sequence: int | None = None
    """Steps that a policy with a memory learns from at once, by default 16, or the horizon where that is shorter;
    what came before reaches it without a gradient."""

    distribution: Kind = "gaussian"
    """How continuous actions are drawn: gaussian, clipped to the bounds; squashed into them by tanh; or beta."""

    state_std: bool = False
    """Whether the network gives the deviations of continuous actions; else they are parameters of their own."""

    log_std_init: float = 0.0
    """Natural logarithm of the standard deviation that continuous actions begin with."""

    def idle(self, asked: Collection[str]) -> list[str]:
        """What of the settings that were asked for by name does nothing in such a network, and what would heed it."""
        heeds = dict(
            memory_size=(self.memory != "none", "--memory lstm, gru or transformer"),
            memory_window=(self.memory == "transformer", "--memory transformer"),
            sequence=(self.remembers, "--memory or --frame-stack"),
            activation=(bool(self.hidden), "--hidden with a layer or more"),
            layer_norm=(bool(self.hidden), "--hidden with a layer or more"),
        )
        idle = {name: way for name, (heeded, way) in heeds.items() if name in asked and not heeded}
        return [f"{name} does nothing here: give {way} too" for name, way in idle.items()]

    @property
    def remembers(self) -> bool:
        """Whether the policy has a state that goes from step to step, and learns from sequences."""
        return self.memory != "none" or self.frame_stack > 1

    def __post_init__(self) -> None:
        if not all(0 < width <= 65_536 for width in self.hidden) or len(self.hidden) > 64:
            raise ConfigError(f"hidden is {self.hidden}: give at most 64 layers of 1 to 65,536 units")
        if not -10 <= self.log_std_init <= 10:
            raise ConfigError(f"log_std_init is {self.log_std_init}: it must be between -10 and 10")
        if not 1 <= self.frame_stack <= 256:
            raise ConfigError(f"frame_stack is {self.frame_stack}: it must be between 1 and 256")
        if self.sequence is not None and self.sequence < 1:
            raise ConfigError(f"sequence is {self.sequence}: it must be at least 1")
