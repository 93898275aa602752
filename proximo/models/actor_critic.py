"""The actor-critic: a trunk that sees and may remember, towers for actor and critic, a head for the actions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from proximo.batch import Batch, leaves_of, tree_map
from proximo.errors import UnsupportedSpace
from proximo.models.distributions import head_for
from proximo.models.encoders import Encoding, encoder_for
from proximo.models.frames import Frames
from proximo.models.images import ImageEncoder
from proximo.models.initial import orthogonal
from proximo.models.memory import CORES
from proximo.models.network import SEQUENCE, Network
from proximo.models.normalize import Normalizer
from proximo.models.own import Own, Rows, own_core
from proximo.observations import MASK, MASKABLE, choices, has_mask
from proximo.policy import Evaluation

OURS = Own()
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


def tower(sizes: Sequence[int], activation: type[nn.Module], gain: float, layer_norm: bool = False) -> nn.Sequential:
    """A multilayer perceptron; orthogonal weights (gain √2, the last layer's `gain`), zero biases."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        linear = orthogonal(nn.Linear(inputs, outputs), gain if last else 2**0.5)
        between = [nn.LayerNorm(outputs), activation()] if layer_norm else [activation()]
        layers += [linear] if last else [linear, *between]
    return nn.Sequential(*layers)


def hidden(layers: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What each hidden layer of a tower puts out, [..., units]."""
    found: list[Tensor] = []
    for layer in layers:
        x = layer(x)
        if isinstance(layer, tuple(ACTIVATIONS.values())):
            found.append(x)
    return found


class Trunk(nn.Module):
    """Observations to features, past what is remembered where there is a core."""

    def __init__(self, space: gym.Space, network: Network, own: Own) -> None:
        super().__init__()
        if own.encoder is None:
            seen = network.normalize_observation, network.images, network.channels, network.precision
            self.encoder: Any = encoder_for(space, Encoding(*seen, stacked=network.frame_stack > 1))
        else:
            self.encoder = Rows(own.encoder, space, network.normalize_observation)
        self.core: Any = None
        if own.core is not None:
            self.core = own_core(own.core, self.encoder.features)
        elif network.memory != "none":
            more = dict(window=network.memory_window) if network.memory == "transformer" else {}
            self.core = CORES[network.memory](self.encoder.features, network.memory_size, **more)
        self.features: int = (self.core or self.encoder).features
        # whether these are units of a network; of several leaves, some are numbers as they were seen
        self.units = self.core is not None or isinstance(self.encoder, ImageEncoder)
        # whether it keeps running statistics of what it sees
        self.observes = own.encoder is not None or any(isinstance(m, Normalizer) for m in self.encoder.modules())

    def initial(self, lanes: int) -> Any:
        return () if self.core is None else self.core.initial(lanes)

    def forward(self, observation: Any, memory: Any, start: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Any]:
        """[..., *] -> [..., features] of a dtype; with a core [T, N, *], the memory before and after, start [T, N]."""
        features = self.encoder(observation).to(dtype)  # choices have none of their own
        return (features, ()) if self.core is None else self.core(features, memory, start)

    def observe(self, observation: Any, mask: Tensor) -> None:
        """Take the rows where the mask is True into running statistics."""
        if self.observes:
            self.encoder.observe(observation, mask)


class ActorCritic(nn.Module):
    """Towers for policy and value (Andrychowicz et al. 2021, arXiv:2006.05990) over one trunk or over one each.

    A vector's trunk is its normaliser alone, which both share; what is learned in a trunk is shared unless
    `network.trunk` is separate.
    """

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, network: Network, own: Own = OURS
    ) -> None:
        super().__init__()
        self.masked = has_mask(observation_space)
        seen = without_mask(observation_space, action_space) if self.masked else observation_space
        self.frames = Frames(seen, network.frame_stack) if network.frame_stack > 1 else None
        seen = seen if self.frames is None else self.frames.space
        self.trunk = Trunk(seen, network, own)
        apart = network.trunk == "separate" and any(True for _ in self.trunk.parameters())
        self.critic_trunk = Trunk(seen, network, own) if apart else None
        self.remembers = self.frames is not None or self.trunk.core is not None
        # what overrides `act` is asked by that name
        as_here = type(self).act is ActorCritic.act
        self.looks = as_here and any(isinstance(module, ImageEncoder) for module in self.modules())
        self.sequence = network.sequence or SEQUENCE
        self.head: Any = head_for(action_space, network.distribution, network.state_std, network.log_std_init)
        shape, activation = (self.trunk.features, *network.hidden), ACTIVATIONS[network.activation]
        self.actor = tower((*shape, self.head.outputs), activation, 0.01, network.layer_norm)
        self.critic = tower((*shape, 1), activation, 1.0, network.layer_norm)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def initial(self, lanes: int) -> Any:
        first = self.trunk.initial(lanes)
        first = first if self.critic_trunk is None else (first, self.critic_trunk.initial(lanes))
        return first if self.frames is None else (self.frames.initial(lanes, self.device), first)

    def noise(self, *shape: int) -> Any:
        return self.head.noise(*shape, device=self.device)

    @torch.no_grad()
    def act(self, observation: Any, noise: Any, memory: Any = (), start: Tensor | None = None) -> tuple[Any, Any]:
        features, memory = self.look(observation, memory, start)
        return self.choose(features, observation, noise), memory

    def look(self, observation: Any, memory: Any, start: Tensor | None) -> tuple[tuple[Tensor, ...], Any]:
        acting, judging, memory = self._step(observation, memory, start)
        return (acting,) if acting is judging else (acting, judging), memory

    def choose(self, features: tuple[Tensor, ...], observation: Any, noise: Any) -> Any:
        distribution = distribution_of(self.head, self.actor(features[0]), observation)
        return distribution.mode() if noise is None else distribution.sample(noise)

    def to_env(self, action: Any) -> Any:
        return self.head.to_env(to_arrays(action))

    def value(self, observation: Any, memory: Any = (), start: Tensor | None = None) -> Tensor:
        return self.critic(self._step(observation, memory, start)[1]).squeeze(-1)

    def evaluate(self, batch: Batch) -> Evaluation:
        acting, judging = self._seen(batch)
        distribution = distribution_of(self.head, self.actor(acting), batch.observation)
        return Evaluation(distribution.logp(batch.action), self.critic(judging).squeeze(-1), distribution)

    @torch.no_grad()
    def layers(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        acting, judging = self._seen(batch)
        actor, critic = hidden(self.actor, acting), hidden(self.critic, judging)
        if self.trunk.units:
            actor.insert(0, acting)
            if self.critic_trunk is not None:
                critic.insert(0, judging)
        return actor, critic

    def _seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features of actor and critic for a batch."""
        if "features" in vars(batch):
            return batch.features[0], batch.features[-1]
        if not self.remembers:
            return self._features(batch.observation, self.initial(0), None)[:2]
        pieces, first = self._sequences(batch)
        acting, judging, _ = self._features(pieces.observation, first, pieces.start)
        return batch.whole(acting), batch.whole(judging)

    def _sequences(self, batch: Batch) -> tuple[Batch, Any]:
        """The batch's sequences side by side [L, K·N, ...], and what was remembered before them."""
        wanted = ("observation", "start", "mask", "memory")
        pieces = Batch(**{name: getattr(batch, name) for name in wanted}).sequences()
        return pieces, tree_map(lambda x: x[0], pieces.memory)

    def _step(self, observation: Any, memory: Any, start: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        """Features of actor and critic for observations [N, ...], and the memory after them."""
        if not self.remembers:
            return self._features(observation, memory, start)
        begun = leaves_of(memory)[0].new_zeros(len(leaves_of(memory)[0]), dtype=torch.bool) if start is None else start
        row = tree_map(lambda x: x.unsqueeze(0), observation)
        acting, judging, memory = self._features(row, memory, begun.unsqueeze(0))
        first = acting[0]
        return first, first if acting is judging else judging[0], memory

    def _features(self, observation: Any, memory: Any, start: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        observation = self._besides_mask(observation)
        if self.frames is not None:
            assert start is not None
            past, memory = memory
            observation, past = self.frames(observation, past, start)
            acting, judging, memory = self._trunks(observation, memory, start)
            return acting, judging, (past, memory)
        return self._trunks(observation, memory, start)

    def _trunks(self, observation: Any, memory: Any, start: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        dtype = self.actor[0].weight.dtype
        if self.critic_trunk is None:
            features, memory = self.trunk(observation, memory, start, dtype)
            return features, features, memory
        own, critics = memory or ((), ())
        acting, own = self.trunk(observation, own, start, dtype)
        judging, critics = self.critic_trunk(observation, critics, start, dtype)
        return acting, judging, (own, critics) if memory else ()

    def _besides_mask(self, observation: Any) -> Any:
        return {key: part for key, part in observation.items() if key != MASK} if self.masked else observation

    def observe(self, batch: Batch) -> None:
        if not self.trunk.observes:
            return
        if self.frames is None:
            shown = self._besides_mask(batch.observation)
        else:
            batch, (past, _) = self._sequences(batch)
            shown, _ = self.frames(self._besides_mask(batch.observation), past, batch.start)
        for trunk in (self.trunk, self.critic_trunk):
            if trunk is not None:
                trunk.observe(shown, batch.mask)


def distribution_of(head: Any, outputs: Tensor, observation: Any) -> Any:
    """The head's distribution, over what the observation's mask allows where it has one."""
    masked = isinstance(observation, dict) and MASK in observation
    return head(outputs, observation[MASK]) if masked else head(outputs)


def to_arrays(tree: Any) -> Any:
    """A tree of tensors as NumPy arrays."""
    return tree_map(lambda x: x.cpu().numpy(), tree)


def without_mask(space: Any, action_space: gym.Space) -> gym.Space:
    """The space of what is seen besides the mask, a Dict; UnsupportedSpace for a mask that fits no action."""
    count = sum(choices(action_space))
    if count == 0 or space[MASK].shape != (count,):
        wanted = f"it must be MultiBinary({count}), the options of all choices in a row" if count else MASKABLE
        raise UnsupportedSpace(f"the mask {space[MASK]} does not fit the action space {action_space}: {wanted}")
    rest = {key: part for key, part in space.spaces.items() if key != MASK}
    if not rest:
        raise UnsupportedSpace(f"observation space {space} has a mask and nothing else to see")
    return gym.spaces.Dict(rest)
