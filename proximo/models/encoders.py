"""Encoders: from what an environment shows to features.

An encoder is an nn.Module with two things: `features`, how many numbers it makes of an observation, and
`forward(observation)`, from a tensor [..., leaf shape] or a nested dict or tuple of them to [..., features]. One that
keeps running statistics has `observe(observation, mask)` too, which takes in the rows where mask [...] is True. Leaves
come as `observations.storage` says. A user's own is `own.Rows`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from proximo.models.images import ImageEncoder
from proximo.models.initial import orthogonal
from proximo.models.normalize import Normalizer
from proximo.observations import Path, leaves, pointer, storage, unsupported

ONE_HOT = 512  # options up to which a choice is one-hot; above, an embedding
EMBEDDING = 64  # numbers that stand for one of more options
MOST = 2**20  # options of the largest choice: 256 MiB of embeddings


@dataclass(frozen=True)
class Encoding:
    """How observations become features."""

    normalize: bool = False
    """Centre and scale Boxes by running statistics, clipped to ±10; not what an image network sees."""

    images: Literal["auto", "nature", "impala", "numbers"] = "auto"
    """The network for images: auto is nature from 64 pixels a side on, impala below; numbers takes them as a vector."""

    channels: Literal["auto", "first", "last"] = "auto"
    """Where an image's colours are: first (C×H×W), last (H×W×C), or whichever side is the shortest."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """What image networks multiply in."""

    stacked: bool = False
    """Whether the first dimension of every leaf is that of a stack: then images of three have no colours."""


def encoder_for(space: gym.Space, encoding: Encoding | None = None) -> nn.Module:
    """The encoder of observations of this space; UnsupportedSpace, which names the leaf, where there is none.

    A Box vector's is a Normalizer or nothing at all, a Dict's or Tuple's is a TreeEncoder. Raises ConfigError for
    images that the network asked for cannot serve, or whose channels cannot be told.
    """
    encoding = encoding or Encoding()
    if isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)):
        return TreeEncoder(space, encoding)
    return leaf_encoder(space, encoding)


def leaf_encoder(leaf: gym.Space, encoding: Encoding, path: Path = ()) -> Any:
    """The encoder of one leaf, at this path."""
    shape, _ = storage(leaf, path)
    seen = encoding.images != "numbers"
    match leaf:
        case gym.spaces.Box() if seen and is_image(leaf):
            channels = "first" if encoding.stacked and len(shape) == 3 else encoding.channels
            return ImageEncoder(shape, encoding.images, channels, pointer(path), encoding.precision)
        case gym.spaces.Box() if seen and encoding.stacked and of_bytes(leaf) and len(shape) > 4:
            raise unsupported(leaf, path, "it is a stack of images before it is stacked: leave frame_stack at 1")
        case gym.spaces.Box() | gym.spaces.MultiBinary():
            normalized = encoding.normalize and isinstance(leaf, gym.spaces.Box)
            vector = Normalizer(math.prod(shape)) if normalized else Vector(math.prod(shape))
            return vector if len(shape) == 1 else Flat(shape, vector)
        case gym.spaces.Discrete() | gym.spaces.MultiDiscrete():
            options = np.reshape(leaf.n if isinstance(leaf, gym.spaces.Discrete) else leaf.nvec, -1).tolist()
            if max(options) > MOST or sum(n for n in options if n <= ONE_HOT) > MOST:
                raise unsupported(leaf, path, f"a choice may have {MOST:,} options: make it a Box or several choices")
            return Choices(shape, options, np.reshape(leaf.start, -1).tolist())
    assert isinstance(leaf, gym.spaces.Text)
    return TextEncoder(len(leaf.character_set), leaf.max_length)


def is_image(box: gym.spaces.Box) -> bool:
    """Whether a Box is an image (or a stack of some): uint8, of 2 to 4 dimensions, all of 0 to 255."""
    return of_bytes(box) and 2 <= len(box.shape) <= 4


def of_bytes(box: gym.spaces.Box) -> bool:
    return box.dtype == np.uint8 and bool((box.low == 0).all() and (box.high == 255).all())


class Vector(nn.Identity):
    """Vectors [..., features] as they are."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features


class Flat(nn.Module):
    """Numbers of any shape in a row, [..., *shape] -> [..., features], for a Normalizer or a Vector."""

    def __init__(self, shape: Sequence[int], vector: Normalizer | Vector) -> None:
        super().__init__()
        self.shape, self.vector, self.features = tuple(shape), vector, vector.features

    def forward(self, observation: Tensor) -> Tensor:
        return self.vector(self.rows(observation))

    def observe(self, observation: Tensor, mask: Tensor) -> None:
        if isinstance(self.vector, Normalizer):
            self.vector.observe(self.rows(observation), mask)

    def rows(self, observation: Tensor) -> Tensor:
        rows = observation.reshape(*observation.shape[: observation.ndim - len(self.shape)], self.features)
        return rows if rows.is_floating_point() else rows.float()


class Choices(nn.Module):
    """Choices int64 [..., *shape] -> [..., features]: one-hot up to ONE_HOT options, an embedding above.

    The one-hot ones come first, then the embeddings. `options` and `start` say, for each choice, how many options it
    has and the number of the first one.
    """

    start: Tensor  # [k]
    one: Tensor  # [columns] the choice that a column of the one-hot features asks about
    option: Tensor  # [columns] and the option that it is one for
    many: Tensor  # [embedded] the choices that have an embedding
    last: Tensor  # [embedded] their last option
    offset: Tensor  # [embedded] where their options begin in the table

    def __init__(self, shape: Sequence[int], options: Sequence[int], start: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        few = [(i, option) for i, n in enumerate(options) if n <= ONE_HOT for option in range(n)]
        many = [i for i, n in enumerate(options) if n > ONE_HOT]
        ends = np.cumsum([0, *(options[i] for i in many)]).tolist()
        tables = dict(start=start, one=[i for i, _ in few], option=[option for _, option in few])
        tables |= dict(many=many, last=[options[i] - 1 for i in many], offset=ends[:-1])
        for name, numbers in tables.items():
            fixed = torch.tensor(numbers, dtype=torch.int64, device="cpu")  # also where only sizes are asked for
            self.register_buffer(name, fixed, persistent=False)
        self.embedding = nn.Embedding(ends[-1], EMBEDDING) if many else None
        self.features = len(few) + EMBEDDING * len(many)

    def forward(self, observation: Tensor) -> Tensor:
        lead = observation.shape[: observation.ndim - len(self.shape)]
        choice = observation.reshape(*lead, len(self.start)) - self.start
        one_hot = (choice.index_select(-1, self.one) == self.option).to(torch.get_default_dtype())
        if self.embedding is None:
            return one_hot
        # one that is not there is told of after the collection, where no step waits to look: not by a lookup that fails
        known = choice.index_select(-1, self.many).clamp(min=0).minimum(self.last)
        embedded = self.embedding(known + self.offset)
        return torch.cat([one_hot, embedded.flatten(-2)], -1)


class TextEncoder(nn.Module):
    """Codes int64 [..., max_length], 0 where a text is over, -> [..., features]; zeros for the empty text.

    Characters and their places are embedded and added, a convolution looks at five neighbours at once, and after a
    ReLU the mean is taken over the text. Embeddings and a mean alone could not tell "dog bites man" from "man bites
    dog", which have the same characters, nor could places help without what is not linear in between. A recurrent
    network could, but one character after the other; this is three operations whatever the length.
    """

    def __init__(self, characters: int, max_length: int, width: int = 32, features: int = 64) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters + 1, width), nn.Embedding(max_length, width)
        self.convolution, self.features = orthogonal(nn.Conv1d(width, features, 5, padding=2)), features

    def forward(self, observation: Tensor) -> Tensor:
        codes = observation.reshape(-1, observation.shape[-1])
        there = (codes > 0).unsqueeze(-2)  # [rows, 1, max_length]
        embedded = (self.characters(codes) + self.places.weight).mT * there
        mean = (self.convolution(embedded).relu() * there).sum(-1) / there.sum(-1).clamp(min=1)
        return mean.reshape(*observation.shape[:-1], self.features)


class TreeEncoder(nn.Module):
    """Nested dicts and tuples: an encoder for each leaf, its features side by side in the space's own order."""

    def __init__(self, space: gym.Space, encoding: Encoding) -> None:
        super().__init__()
        found = leaves(space)
        self.paths = list(found)
        self.leaves = nn.ModuleDict({pointer(path): leaf_encoder(leaf, encoding, path) for path, leaf in found.items()})
        self.features = sum(encoder.features for _, encoder in self.parts())

    def forward(self, observation: Any) -> Tensor:
        return torch.cat([encoder(reduce(getitem, path, observation)) for path, encoder in self.parts()], -1)

    def observe(self, observation: Any, mask: Tensor) -> None:
        for path, encoder in self.parts():
            if hasattr(encoder, "observe"):
                encoder.observe(reduce(getitem, path, observation), mask)

    def parts(self) -> list[tuple[Path, Any]]:
        return list(zip(self.paths, self.leaves.values(), strict=True))
