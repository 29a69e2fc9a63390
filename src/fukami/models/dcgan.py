"""DCGAN: a generator that draws, and a discriminator that tells what is drawn from what is real.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", ICLR 2016, section 3 and figure 1. Nothing is pooled and nothing is affine but the first layer of the one and
the last of the other; at 64×64, with ``width`` 128:

    generator       noise 100 ─ 1024×4×4 ─ 512×8×8 ─ 256×16×16 ─ 128×32×32 ─ C×64×64
    discriminator   C×64×64 ─ 128×32×32 ─ 256×16×16 ─ 512×8×8 ─ 1024×4×4 ─ 1

Each step of the generator is a transposed convolution, batch normalisation and ReLU, the last one tanh alone; each of
the discriminator a convolution, batch normalisation (but the first) and LeakyReLU. A picture of 28×28 begins with 7×7.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

NOISE = 100  # numbers that a picture is made of (section 4)
LEAK = 0.2  # slope of LeakyReLU below 0 (section 4)
DEVIATION = 0.02  # of all weights at the beginning (section 4)
SIZES = {28: 7, 32: 4, 64: 4, 128: 4}  # the side of a picture, and that of the generator's first maps
WIDEST = 8  # times as many maps as in the widest layer of a picture of 64×64, of larger ones, too


def dcgan_generator(size: int = 64, *, channels: int = 3, width: int = 128, kernel: int = 5) -> "Generator":
    """The generator: noise ``(N, 100)`` in -1..1 to pictures ``(N, channels, size, size)`` in -1..1.

    Args:
        size: 28, 32, 64 or 128 pixels.
        channels: 1 grey, 3 colour.
        width: maps before the last layer; each layer before has twice as many, at most eight times.
        kernel: side of the filters, 5 as in the paper or 4, in which no pixel has more to add up than its neighbours.
    """
    return Generator(size, channels, width, kernel)


def dcgan_discriminator(
    size: int = 64, *, channels: int = 3, width: int = 128, kernel: int = 5, spectral: bool = False
) -> "Discriminator":
    """The discriminator: pictures ``(N, channels, size, size)`` in -1..1 to scores ``(N,)``, above 0 for real.

    Args:
        size, channels, width, kernel: as for :func:`dcgan_generator`.
        spectral: weights divided by their spectral norm (Miyato et al. 2018) in place of batch normalisation.
    """
    return Discriminator(size, channels, width, kernel, spectral)


class Generator(nn.Module):
    """Noise, projected to the first maps, which are enlarged twofold again and again."""

    numbers = NOISE

    def __init__(self, size: int, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        widths = _widths(size, width)[::-1]
        self.first = (widths[0], SIZES[size], SIZES[size])
        self.noise = nn.Linear(NOISE, widths[0] * SIZES[size] ** 2, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
        form = {"kernel_size": kernel, "stride": 2, "padding": (kernel - 1) // 2, "output_padding": kernel % 2}
        twofold: Any = partial(nn.ConvTranspose2d, **form)  # type: ignore[arg-type]
        for inputs, outputs in pairwise(widths):
            layers.append(twofold(inputs, outputs, bias=False))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, twofold(widths[-1], channels), nn.Tanh())
        self.apply(_initialise)

    def forward(self, noise: Tensor) -> Tensor:
        """``(N, 100)`` to ``(N, C, H, W)``."""
        maps = self.noise(noise).unflatten(1, self.first)
        return self.layers(maps.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]


class Discriminator(nn.Module):
    """A chain of convolutions with stride 2, and a sum of all that is left."""

    def __init__(self, size: int, channels: int, width: int, kernel: int, spectral: bool) -> None:
        super().__init__()
        widths = _widths(size, width)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([channels, *widths]):
            plain = spectral or not layers
            layers.append(nn.Conv2d(inputs, outputs, kernel, stride=2, padding=(kernel - 1) // 2, bias=plain))
            layers += ([] if plain else [nn.BatchNorm2d(outputs)]) + [nn.LeakyReLU(LEAK, inplace=True)]
        self.features = nn.Sequential(*layers)
        self.score = nn.Linear(widths[-1] * SIZES[size] ** 2, 1)
        self.apply(_initialise)
        if spectral:
            for layer in [*self.features, self.score]:
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    spectral_norm(layer)

    def forward(self, pictures: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N,)``."""
        return self.score(self.features(pictures).flatten(1)).squeeze(1)  # type: ignore[no-any-return]

    def seen(self, pictures: Tensor) -> list[Tensor]:
        """The maps after each LeakyReLU, from which a classifier can learn (section 5.1)."""
        found, x = [], pictures
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                found.append(x)
        return found


def _widths(size: int, width: int) -> list[int]:
    """The maps of each layer of the discriminator, from the pictures on."""
    if size not in SIZES:
        raise ValueError(f"size should be one of {', '.join(map(str, SIZES))}, not {size}")
    halvings = (size // SIZES[size]).bit_length() - 1
    return [width * min(2**number, WIDEST) for number in range(halvings)]


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(layer.weight, 0.0, DEVIATION)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, DEVIATION)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
