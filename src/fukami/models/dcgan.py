"""DCGAN: a generator that draws, and a discriminator that tells what is drawn from what is real.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", ICLR 2016, section 3 and figure 1. Nothing is pooled and nothing is affine but the first layer of the one and
the last of the other; at 64×64, with ``width`` 128:

    generator       noise 100 ─ 1024×4×4 ─ 512×8×8 ─ 256×16×16 ─ 128×32×32 ─ C×64×64
    discriminator   C×64×64 ─ 128×32×32 ─ 256×16×16 ─ 512×8×8 ─ 1024×4×4 ─ 1

Each step of the generator is a transposed convolution, batch normalisation and ReLU, the last one tanh alone; each of
the discriminator a convolution, batch normalisation (but the first) and LeakyReLU. An image of 28×28 goes from 4×4 by
way of 7×7 and 14×14.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

LATENT_DIM = 100  # numbers that an image is made of (section 4)
NEGATIVE_SLOPE = 0.2  # slope of LeakyReLU below 0 (section 4)
INIT_STD = 0.02  # of all weights at the beginning (section 4)
IMAGE_SIZES = (28, 32, 64, 128)  # the side of an image
INITIAL_SIZE = 4  # that of the generator's first maps
MAX_CHANNEL_FACTOR = 8  # times as many maps as in the widest layer of an image of 64×64, of larger ones, too


def dcgan_generator(
    size: int = 64, *, channels: int = 3, base_channels: int = 128, kernel_size: int = 5
) -> "Generator":
    """The generator: noise ``(N, 100)`` in -1..1 to images ``(N, channels, size, size)`` in -1..1.

    Args:
        size: 28, 32, 64 or 128 pixels.
        channels: 1 grey, 3 colour.
        base_channels: maps before the last layer; each layer before has twice as many, at most eight times.
        kernel_size: side of the filters, 5 as in the paper or 4, in which no pixel has more to add up than its
            neighbours.
    """
    return Generator(size, channels, base_channels, kernel_size)


def dcgan_discriminator(
    size: int = 64,
    *,
    channels: int = 3,
    base_channels: int = 128,
    kernel_size: int = 5,
    use_spectral_norm: bool = False,
) -> "Discriminator":
    """The discriminator: images ``(N, channels, size, size)`` in -1..1 to scores ``(N,)``, above 0 for real.

    Args:
        size, channels, base_channels, kernel_size: as for :func:`dcgan_generator`.
        use_spectral_norm: weights divided by their spectral norm (Miyato et al. 2018) in place of batch normalisation.
    """
    return Discriminator(size, channels, base_channels, kernel_size, use_spectral_norm)


class Generator(nn.Module):
    """Noise, projected to the first maps, which are enlarged twofold again and again."""

    latent_dim = LATENT_DIM

    def __init__(self, size: int, channels: int, base_channels: int, kernel_size: int) -> None:
        super().__init__()
        steps = _compute_layer_shapes(size, channels, base_channels)[::-1]
        widest = steps[0][2]
        self.initial_shape = (widest, INITIAL_SIZE, INITIAL_SIZE)
        self.noise = nn.Linear(LATENT_DIM, widest * INITIAL_SIZE**2, bias=False)
        layers: list[nn.Module] = []
        for side, outputs, inputs in steps:
            layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)]
            form = _build_conv_options(kernel_size, side)
            more = form["kernel_size"] % 2 - side % 2
            layers.append(nn.ConvTranspose2d(inputs, outputs, **form, output_padding=more, bias=side == size))
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(_init_weights)

    def forward(self, latents: Tensor) -> Tensor:
        """``(N, 100)`` to ``(N, C, H, W)``."""
        maps = self.noise(latents).unflatten(1, self.initial_shape)
        return self.layers(maps.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]


class Discriminator(nn.Module):
    """A chain of convolutions with stride 2, and a sum of all that is left."""

    def __init__(self, size: int, channels: int, base_channels: int, kernel_size: int, use_spectral_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for side, inputs, outputs in _compute_layer_shapes(size, channels, base_channels):
            plain = use_spectral_norm or not layers
            layers.append(nn.Conv2d(inputs, outputs, **_build_conv_options(kernel_size, side), bias=plain))
            layers += ([] if plain else [nn.BatchNorm2d(outputs)]) + [nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)]
        self.features = nn.Sequential(*layers)
        self.score = nn.Linear(outputs * INITIAL_SIZE**2, 1)
        self.apply(_init_weights)
        if use_spectral_norm:
            for layer in [*self.features, self.score]:
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    spectral_norm(layer)

    def forward(self, images: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N,)``."""
        return self.score(self.features(images).flatten(1)).squeeze(1)  # type: ignore[no-any-return]

    def extract_features(self, images: Tensor) -> list[Tensor]:
        """The maps after each LeakyReLU, from which a classifier can learn (section 5.1)."""
        found, x = [], images
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                found.append(x)
        return found


def _compute_layer_shapes(size: int, channels: int, width: int) -> list[tuple[int, int, int]]:
    """The steps of the discriminator: the side of what comes in, its maps, and those that go out."""
    if size not in IMAGE_SIZES:
        raise ValueError(f"size should be one of {', '.join(map(str, IMAGE_SIZES))}, not {size}")
    steps: list[tuple[int, int, int]] = []
    inputs = channels
    while size > INITIAL_SIZE:
        outputs = width * min(2 ** len(steps), MAX_CHANNEL_FACTOR)
        steps.append((size, inputs, outputs))
        size, inputs = (size + 1) // 2, outputs
    return steps


def _build_conv_options(kernel: int, side: int) -> dict[str, Any]:
    """Of a filter that halves a side; an odd one takes an odd filter."""
    if side % 2 == 1 and kernel % 2 == 0:
        kernel -= 1
    return {"kernel_size": kernel, "stride": 2, "padding": (kernel - 1) // 2}


def _init_weights(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(layer.weight, 0.0, INIT_STD)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, INIT_STD)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
