"""DCGAN: generator and discriminator of a generative adversarial network.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", ICLR 2016, section 3 and figure 1. There is no pooling, and only the generator's first layer and the
discriminator's last layer are fully connected. At 64×64, with ``base_channels=128``:

    generator       noise 100 ─ 1024×4×4 ─ 512×8×8 ─ 256×16×16 ─ 128×32×32 ─ C×64×64
    discriminator   C×64×64 ─ 128×32×32 ─ 256×16×16 ─ 512×8×8 ─ 1024×4×4 ─ 1

Each stage of the generator is a transposed convolution, batch normalization and ReLU; the last stage ends in tanh only.
Each stage of the discriminator is a convolution, batch normalization (except in the first) and LeakyReLU. For 28×28
images the maps are 4×4, 7×7, 14×14 and 28×28.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fukami.layers.initialization import zero_bias

LATENT_DIM = 100  # length of the latent vectors (Radford et al. 2016, figure 1)
NEGATIVE_SLOPE = 0.2  # slope of LeakyReLU below 0 (Radford et al. 2016, section 4)
INIT_STD = 0.02  # standard deviation of the initial weights (Radford et al. 2016, section 4)
IMAGE_SIZES = (28, 32, 64, 128)  # supported image sizes
INITIAL_SIZE = 4  # side of the generator's first maps
MAX_CHANNEL_FACTOR = 8  # maximum multiple of base_channels; reached at 64×64


def dcgan_generator(
    size: int = 64, *, channels: int = 3, base_channels: int = 128, kernel_size: int = 5
) -> "Generator":
    """Build the generator: latent vectors ``(N, 100)`` in -1..1 to images ``(N, channels, size, size)`` in -1..1.

    Args:
        size: image size: 28, 32, 64 or 128 pixels.
        channels: 1 grayscale, 3 color.
        base_channels: channels before the last layer; each earlier layer has twice as many, at most 8 × base_channels.
        kernel_size: 5 as in the paper, or 4, which covers all pixels equally (no checkerboard artifacts).
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
    """Build the discriminator: images ``(N, channels, size, size)`` in -1..1 to scores ``(N,)``, above 0 for real.

    Args:
        size, channels, base_channels, kernel_size: as for :func:`dcgan_generator`.
        use_spectral_norm: spectral normalization (Miyato et al. 2018) instead of batch normalization.
    """
    return Discriminator(size, channels, base_channels, kernel_size, use_spectral_norm)


class Generator(nn.Module):
    """DCGAN generator: a linear projection of the latent vector and transposed convolutions with stride 2."""

    latent_dim = LATENT_DIM

    def __init__(self, size: int, channels: int, base_channels: int, kernel_size: int) -> None:
        super().__init__()
        shapes = _compute_layer_shapes(size, channels, base_channels)[::-1]
        max_channels = shapes[0][2]
        self.initial_shape = (max_channels, INITIAL_SIZE, INITIAL_SIZE)
        self.noise = nn.Linear(LATENT_DIM, max_channels * INITIAL_SIZE**2, bias=False)
        layers: list[nn.Module] = []
        for side, outputs, inputs in shapes:
            layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)]
            kernel = _fit_kernel_size(kernel_size, side)
            padding, output_padding = (kernel - 1) // 2, kernel % 2 - side % 2
            layers.append(nn.ConvTranspose2d(inputs, outputs, kernel, 2, padding, output_padding, bias=side == size))
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(_init_weights)

    def forward(self, latents: Tensor) -> Tensor:
        """Generate images ``(N, C, H, W)`` from latent vectors ``(N, 100)``."""
        maps = self.noise(latents).unflatten(1, self.initial_shape)
        images: Tensor = self.layers(maps.contiguous(memory_format=torch.channels_last))
        return images


class Discriminator(nn.Module):
    """DCGAN discriminator: convolutions with stride 2 and a fully connected layer."""

    def __init__(self, size: int, channels: int, base_channels: int, kernel_size: int, use_spectral_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for side, inputs, outputs in _compute_layer_shapes(size, channels, base_channels):
            bias = use_spectral_norm or not layers
            kernel = _fit_kernel_size(kernel_size, side)
            layers.append(nn.Conv2d(inputs, outputs, kernel, 2, (kernel - 1) // 2, bias=bias))
            layers += ([] if bias else [nn.BatchNorm2d(outputs)]) + [nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)]
        self.features = nn.Sequential(*layers)
        self.score = nn.Linear(outputs * INITIAL_SIZE**2, 1)
        self.apply(_init_weights)
        if use_spectral_norm:
            for layer in [*self.features, self.score]:
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    spectral_norm(layer)

    def forward(self, images: Tensor) -> Tensor:
        """Compute scores ``(N,)`` of images ``(N, C, H, W)``."""
        scores: Tensor = self.score(self.features(images).flatten(1))
        return scores.squeeze(1)

    def extract_features(self, images: Tensor) -> list[Tensor]:
        """Return the maps after each LeakyReLU, as features for a classifier (Radford et al. 2016, section 5.1)."""
        features, x = [], images
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                features.append(x)
        return features


def _compute_layer_shapes(size: int, channels: int, width: int) -> list[tuple[int, int, int]]:
    """Compute input size, input channels and output channels of each layer of the discriminator."""
    if size not in IMAGE_SIZES:
        raise ValueError(f"size must be one of {', '.join(map(str, IMAGE_SIZES))}, not {size}")
    shapes: list[tuple[int, int, int]] = []
    inputs = channels
    while size > INITIAL_SIZE:
        outputs = width * min(2 ** len(shapes), MAX_CHANNEL_FACTOR)
        shapes.append((size, inputs, outputs))
        size, inputs = (size + 1) // 2, outputs
    return shapes


def _fit_kernel_size(kernel_size: int, side: int) -> int:
    """Return the kernel size of a convolution that halves ``side``; an odd side needs an odd kernel."""
    return kernel_size - 1 if side % 2 == 1 and kernel_size % 2 == 0 else kernel_size


def _init_weights(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0, INIT_STD)
        zero_bias(layer)
