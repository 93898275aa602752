"""Convolutional networks for images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from proximo.errors import ConfigError, unknown
from proximo.models.initial import orthogonal
from proximo.models.packed import Step, convolution, packed

SMALLEST = 36  # pixels a side of which NatureCNN's three layers leave one position


def nature(channels: int, height: int, width: int) -> nn.Sequential:
    """NatureCNN, 512 features (Mnih et al. 2015, doi:10.1038/nature14236, Methods, "Model architecture")."""
    layers: list[nn.Module] = []
    for filters, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
        layers += [orthogonal(nn.Conv2d(channels, filters, kernel, stride)), nn.ReLU(inplace=True)]
        height, width = ((side - kernel) // stride + 1 for side in (height, width))
        channels = filters
    layers[-1:] = [nn.Flatten(), nn.ReLU()]  # this way round neither it nor its gradient goes across memory
    return nn.Sequential(*layers, orthogonal(nn.Linear(channels * height * width, 512)), nn.ReLU())


def impala(channels: int, height: int, width: int) -> nn.Sequential:
    """The residual network of IMPALA, 256 features (Espeholt et al. 2018, arXiv:1802.01561, figure 3, right).

    What no ReLU follows at once begins with gain 1: six residual blocks with √2 would make features of 10 out of 1.
    """
    layers: list[nn.Module] = []
    for filters in (16, 32, 32):
        layers += [orthogonal(nn.Conv2d(channels, filters, 3, padding=1), gain=1.0), nn.MaxPool2d(3, 2, padding=1)]
        layers += [Residual(filters), Residual(filters)]
        height, width, channels = (height + 1) // 2, (width + 1) // 2, filters
    dense = orthogonal(nn.Linear(channels * height * width, 256))
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), dense, nn.ReLU())


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), of 3×3 filters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = orthogonal(nn.Conv2d(channels, channels, 3, padding=1))
        self.second = orthogonal(nn.Conv2d(channels, channels, 3, padding=1), gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x.relu()).relu())

    def packed(self, x: Tensor) -> Step:
        """The same of inputs like `x`, by weights that are laid out once."""
        first, second = convolution(self.first, x, "relu"), convolution(self.second, x, "none")
        return lambda x: x + second(first(x.relu()))


# [C, H, W] -> network, and its features
NETWORKS: dict[str, tuple[Callable[[int, int, int], nn.Sequential], int]] = {
    "nature": (nature, 512),
    "impala": (impala, 256),
}


class ImageEncoder(nn.Module):
    """Images uint8 [..., *shape] -> [..., features], through a convolutional network.

    `shape` is that of one observation: H×W (gray), with `channels` first or last, or a stack of such frames before all
    that, S×H×W×C or S×C×H×W, whose frames become channels. "auto" takes the side that is shorter than both others
    for the channels; ConfigError if none is.

    `network` "auto" is NatureCNN from 64 pixels a side on and IMPALA's below: NatureCNN's first layer looks at every
    fourth pixel, which is right for Atari's 84 and leaves nothing of a small image (4×4 positions of 64, one of 36);
    IMPALA's sees every pixel and halves the image three times, which costs eight times as much at 84 pixels, and
    little where there are few. With `precision` "bfloat16" products are of numbers of 8 bits' precision; weights, sums
    and what comes out stay float32.
    """

    def __init__(
        self,
        shape: Sequence[int],
        network: str = "auto",
        channels: str = "auto",
        name: str = "",
        precision: str = "float32",
    ) -> None:
        super().__init__()
        self.shape, self.brief = tuple(shape), precision == "bfloat16"
        self.last, self.image = layout(self.shape, channels, name)
        height, width = self.image[1:]
        if network == "auto":
            network = "nature" if min(height, width) >= 64 else "impala"
        if network not in NETWORKS:
            raise unknown("image network", network, (*NETWORKS, "auto"))
        if network == "nature" and min(height, width) < SMALLEST:
            size = f"{height}×{width} pixels, but nature needs {SMALLEST} a side"
            raise ConfigError(f"the images{name and f' at {name}'} have {size}: take impala, which serves any size")
        make, self.features = NETWORKS[network]
        self.network = make(*self.image)

    def forward(self, observation: Tensor) -> Tensor:
        lead = observation.shape[: observation.ndim - len(self.shape)]
        images = observation.reshape(-1, *self.shape)
        if self.last:
            images = images.movedim(-1, -3)
        images = images.reshape(-1, *self.image)
        # On the CPU both networks learn 1.3 to 1.6 times as fast in float32 with the channels innermost.
        order = torch.channels_last if images.device.type == "cpu" else torch.contiguous_format
        first: Any = self.network[0]
        dtype = torch.bfloat16 if self.brief else first.weight.dtype
        # bytes are turned in half the time of floats; said twice, for one channel lies in every order
        images = images.contiguous(memory_format=order).to(dtype, memory_format=order)
        features = packed(self.network, images, 1 / 255)
        if features is None:
            with torch.autocast(images.device.type, dtype, enabled=self.brief):
                weight = first.weight / 255  # instead of the images, which are larger
                convolved = conv2d(images, weight, first.bias, first.stride, first.padding)
                features = self.network[1:](convolved)
        return features.to(first.weight.dtype).reshape(*lead, self.features)


def layout(shape: tuple[int, ...], channels: str, name: str = "") -> tuple[bool, tuple[int, int, int]]:
    """Whether the channels of images of this shape come last, and their [C, H, W]; see `ImageEncoder`."""
    if channels not in ("auto", "first", "last"):
        raise unknown("order of channels", channels, ("auto", "first", "last"))
    if len(shape) == 2:
        return False, (1, *shape)
    first, middle, last = shape[-3:]
    if channels == "auto":
        if first < min(middle, last):
            channels = "first"
        elif last < min(first, middle):
            channels = "last"
        else:
            size = "×".join(map(str, shape))
            where = f"the images{name and f' at {name}'} are {size}, and no side is clearly the channels'"
            raise ConfigError(f"{where}: give --channels first or --channels last")
    frames = shape[0] if len(shape) == 4 else 1
    return (True, (frames * last, first, middle)) if channels == "last" else (False, (frames * first, middle, last))
