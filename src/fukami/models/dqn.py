"""Deep Q-Network: action values from the last four frames of a game.

Mnih et al., "Human-level control through deep reinforcement learning", Nature 518, 2015, extended data table 1 and
methods, "Model architecture". For images of 84×84:

    conv8-32 stride 4     32 × 20 × 20
    conv4-64 stride 2     64 × 9 × 9
    conv3-64              64 × 7 × 7
    fc 512                fc, one value per action

ReLU follows every layer except the last. For vector observations two fully connected layers replace the convolutions.

DeepMind's code scales images to 0..1. Here they are standardized with the statistics of collected frames, and weights
are initialized as in He et al. 2015: 99 % of the variance of a Pong frame is the constant background.
"""

import torch
from torch import Tensor, nn

from fukami.layers.autocast import disable_autocast
from fukami.layers.initialization import zero_bias

MIN_SIDE = 36  # minimum image side for the three convolutions
OUTPUT_INIT_GAIN = 0.01  # gain of the last layer's orthogonal initialization: initial values are close to 0


def dqn(num_actions: int = 18, *, state_shape: tuple[int, ...] = (4, 84, 84), hidden: int = 512) -> "DQN":
    """Build the network of the Nature paper: states ``(N, *shape)`` to action values ``(N, actions)``.

    Args:
        num_actions: number of actions; the Atari 2600 has 18.
        state_shape: shape of a state: frames, height and width (values in 0..255, at least 36×36), or vector length.
        hidden: number of units of the hidden fully connected layer; for vectors, of both.

    Raises:
        ValueError: the images are too small, or ``state_shape`` is neither an image nor a vector shape.
    """
    return DQN(num_actions, state_shape, hidden)


class DQN(nn.Module):
    """Deep Q-network: convolutions over frames, or fully connected layers over vectors, and an output layer."""

    mean: Tensor
    std: Tensor

    def __init__(self, num_actions: int, state_shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.takes_images = len(state_shape) == 3
        if self.takes_images:
            channels, *sides = state_shape
            if min(sides) < MIN_SIDE:
                raise ValueError(f"dqn needs images of at least {MIN_SIDE}×{MIN_SIDE}, not {sides[0]}×{sides[1]}")
            convolutions = [nn.Conv2d(channels, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)]
            height, width = (((side - 4) // 4 - 2) // 2 - 2 for side in sides)
            inputs = 64 * height * width
            self.register_buffer("mean", torch.zeros(sides))
            self.register_buffer("std", torch.tensor(255.0))
        elif len(state_shape) == 1:
            convolutions, inputs = [], state_shape[0]
        else:
            raise ValueError(f"state_shape must be (frames, height, width) or (length,), not {state_shape}")
        layers: list[nn.Module] = [module for layer in convolutions for module in (layer, nn.ReLU(inplace=True))]
        layers.append(nn.Flatten())
        for _ in range(1 if self.takes_images else 2):
            layers += [nn.Linear(inputs, hidden), nn.ReLU(inplace=True)]
            inputs = hidden
        self.layers, self.values = nn.Sequential(*layers), nn.Linear(inputs, num_actions)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # He et al. 2015, equation 10
                zero_bias(layer)
        nn.init.orthogonal_(self.values.weight, OUTPUT_INIT_GAIN)
        nn.init.zeros_(self.values.bias)

    def fit_input_statistics(self, frames: Tensor) -> None:
        """Compute the mean of each pixel and the standard deviation of all pixels from frames ``(M, H, W)``."""
        frames = frames.to(self.mean.device).float()
        self.mean.copy_(frames.mean(0))
        self.std.copy_((frames - self.mean).square().mean().sqrt().clamp(min=1))

    def forward(self, states: Tensor) -> Tensor:
        """Compute action values ``(N, actions)`` of states ``(N, *shape)``, images in 0..255."""
        parameter = next(self.parameters())
        device = parameter.device
        if self.takes_images:
            autocast = device.type != "meta" and torch.is_autocast_enabled(device.type)
            dtype = torch.get_autocast_dtype(device.type) if autocast else parameter.dtype
            mean = self.mean.to(dtype).expand_as(states[:1]).contiguous(memory_format=torch.channels_last)
            states = states.contiguous(memory_format=torch.channels_last).to(dtype, copy=True)
            states = states.sub_(mean).div_(self.std)  # same memory layout: six times as fast on CPUs
        features = self.layers(states).to(self.values.weight.dtype)
        # differences between large action values are below half precision
        with disable_autocast(device):
            values: Tensor = self.values(features)
        return values
