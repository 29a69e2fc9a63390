"""Deep Q-Network: what each action is worth, from the last four frames of a game.

Mnih et al., "Human-level control through deep reinforcement learning", Nature 518, 2015, extended data table 1 and
methods, "Model architecture". For images of 84×84:

    conv8-32 stride 4     32 × 20 × 20
    conv4-64 stride 2     64 × 9 × 9
    conv3-64              64 × 7 × 7
    affine 512  affine, a value for each action

Every layer but the last is followed by ReLU. Observations that are vectors pass two affine layers instead.

The paper gives images in 0..1; here they are standardised by what was seen, as images are for classifiers, and
weights begin as in He et al. 2015: in an image of Pong all but a hundredth of the variance is what never changes.
"""

import torch
from torch import Tensor, nn

MIN_SIDE = 36  # pixels that the three convolutions need
OUTPUT_INIT_GAIN = 0.01  # of the last layer's weights at the beginning, as an orthogonal matrix: it knows no values yet


def dqn(num_actions: int = 18, *, state_shape: tuple[int, ...] = (4, 84, 84), hidden: int = 512) -> "DQN":
    """The network of the Nature paper: states ``(N, *shape)`` to the value of each action ``(N, actions)``.

    Args:
        num_actions: that can be taken; 18 are those of the Atari 2600.
        state_shape: of a state: frames, height and width in 0..255, at least 36×36, or the length of a vector.
        hidden: width of the affine layer, of both where states are vectors.

    Raises:
        ValueError: the images are too small, or the shape is of something else.
    """
    return DQN(num_actions, state_shape, hidden)


class DQN(nn.Module):
    """Convolutions over frames, or affine layers over numbers, and an affine layer for the values."""

    mean: Tensor
    deviation: Tensor

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
            self.register_buffer("deviation", torch.tensor(255.0))
        elif len(state_shape) == 1:
            convolutions, inputs = [], state_shape[0]
        else:
            raise ValueError(f"a state is images (frames, height, width) or a vector (length,), not {state_shape}")
        layers: list[nn.Module] = [part for layer in convolutions for part in (layer, nn.ReLU(inplace=True))]
        layers.append(nn.Flatten())
        for _ in range(1 if self.takes_images else 2):
            layers += [nn.Linear(inputs, hidden), nn.ReLU(inplace=True)]
            inputs = hidden
        self.layers, self.values = nn.Sequential(*layers), nn.Linear(inputs, num_actions)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # He et al. 2015, eq. 10
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.orthogonal_(self.values.weight, OUTPUT_INIT_GAIN)
        nn.init.zeros_(self.values.bias)

    def fit_input_statistics(self, frames: Tensor) -> None:
        """Take from frames ``(M, H, W)`` that were seen what is subtracted from each pixel, and divided by."""
        seen = frames.to(self.mean.device).float()
        self.mean.copy_(seen.mean(0))
        self.deviation.copy_((seen - self.mean).square().mean().sqrt().clamp(min=1))

    def forward(self, states: Tensor) -> Tensor:
        """``(N, *shape)``, images in 0..255, to ``(N, actions)``."""
        device = states.device.type
        if self.takes_images:
            mixed = torch.is_autocast_enabled(device)
            kind = torch.get_autocast_dtype(device) if mixed else next(self.parameters()).dtype
            mean = self.mean.to(kind).expand_as(states[:1]).contiguous(memory_format=torch.channels_last)
            states = states.contiguous(memory_format=torch.channels_last).to(kind)
            states = states.sub_(mean).div_(self.deviation)  # each as it lies in memory: sixfold as fast on processors
        seen = self.layers(states).to(self.values.weight.dtype)
        # what actions are worth differs by less than half precision can tell, where they are worth much
        with torch.autocast(device, enabled=False):
            found: Tensor = self.values(seen)
        return found
