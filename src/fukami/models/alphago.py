"""AlphaGo Zero: a residual tower with a policy head and a value head.

Silver et al., "Mastering the game of Go without human knowledge", Nature 550, 2017, methods, "Neural network
architecture":

    convolution   3×3, batch normalization, ReLU
    blocks        3×3, batch normalization, ReLU, 3×3, batch normalization, skip connection, ReLU
    policy head   1×1 to 2 channels, batch normalization, ReLU, fc to one logit per move
    value head    1×1 to 1 channel, batch normalization, ReLU, fc 256, ReLU, fc 1, tanh

Here the heads have 32 channels, which small boards need more than the 19×19 points of the paper, and the hidden layer
64 units and batch normalization. Without it, the noise of the outcomes makes most of its units 0 for all positions in
the first hundred steps, and all for recorded games, whose predicted value was then a constant. For Go the network is
fully convolutional, so that one network plays on boards of several sizes, and it predicts the owner of every point and
the score (Wu 2019, "Accelerating Self-Play Learning in Go", sections 3.3 and 4.1 and appendix A): every second block
adds a bias from globally pooled features, and the heads take pooled features instead of fully connected layers over the
board.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from fukami.layers.autocast import disable_autocast

HEAD_CHANNELS = 32  # channels of the convolutions of the heads
HIDDEN = 64  # units of the hidden layer of the value head
SCORE_SCALE = 20.0  # points of a unit of the score output
MEAN_SIZE, SIZE_SCALE = 12.0, 10.0  # of board sides, for the pooled features (Wu 2019, appendix A.2, with 14)


class BoardPrediction(NamedTuple):
    """Prediction for a batch of positions, from the point of view of the side to move.

    Attributes:
        policy: logits of the moves, ``(N, A)``.
        value: expected outcome, -1..1, ``(N,)``.
    """

    policy: Tensor
    value: Tensor


class GoPrediction(NamedTuple):
    """Prediction for a batch of positions of Go, from the point of view of the side to move.

    Attributes:
        policy: logits of the moves, ``(N, A)``.
        value: expected outcome, -1..1, ``(N,)``.
        score: expected score in points, ``(N,)``.
        owners: owner of each point, from -1 (opponent) to 1, ``(N, H·W)``.
    """

    policy: Tensor
    value: Tensor
    score: Tensor
    owners: Tensor


def alphago_zero(
    num_moves: int = 362,
    *,
    num_planes: int = 17,
    shape: tuple[int, int] = (19, 19),
    num_blocks: int = 19,
    num_channels: int = 256,
    any_size: bool = False,
    predicts_score: bool = False,
) -> "AlphaGoZero":
    """Build the network for planes ``(N, num_planes, H, W)``.

    Args:
        num_moves: number of moves, 362 on a Go board of 19×19.
        num_planes: number of input planes.
        shape: rows and columns of the board.
        num_blocks: residual blocks; 19 or 39 in the paper.
        num_channels: channels of the tower.
        any_size: fully convolutional heads, one move per point and the pass; the network accepts any board size.
        predicts_score: these heads, and the outputs of the score and the owners.
    """
    is_go = any_size or predicts_score
    heads = (
        GoHeads(num_channels, predicts_score=predicts_score) if is_go else BoardHeads(num_moves, shape, num_channels)
    )
    return AlphaGoZero(num_planes, num_blocks, num_channels, heads, pools=is_go)


class AlphaGoZero(nn.Module):
    """Residual tower with heads for the policy and the value."""

    def __init__(self, num_planes: int, num_blocks: int, num_channels: int, heads: "_Heads", *, pools: bool) -> None:
        super().__init__()
        self.stem = ConvBlock(num_planes, num_channels, 3)
        self.blocks = nn.Sequential(
            *(ResidualBlock(num_channels, pools=pools and index % 2 == 1) for index in range(num_blocks))
        )
        self.heads = heads
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, planes: Tensor) -> BoardPrediction | GoPrediction:
        """Compute the prediction for planes ``(N, C, H, W)``."""
        features = self.blocks(self.stem(planes))
        prediction: BoardPrediction | GoPrediction = self.heads(features)
        return prediction

    def fuse_batch_norm(self) -> "AlphaGoZero":
        """Return a copy for inference whose convolutions and linear layers contain the batch normalization."""
        network = copy.deepcopy(self).eval()
        for module in network.modules():
            if isinstance(module, ConvBlock):
                module.conv = fuse_conv_bn_eval(module.conv, module.norm)
                module.norm = nn.Identity()  # type: ignore[assignment]
            elif isinstance(module, LinearBlock):
                module.linear = fuse_linear_bn_eval(module.linear, module.norm)
                module.norm = nn.Identity()  # type: ignore[assignment]
        return network.requires_grad_(False)


class ConvBlock(nn.Module):
    """Convolution, batch normalization, and ReLU if ``relu``."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = relu

    def forward(self, features: Tensor) -> Tensor:
        """Compute the features ``(N, out, H, W)``."""
        outputs: Tensor = self.norm(self.conv(features))
        return outputs.relu_() if self.relu else outputs


class LinearBlock(nn.Module):
    """Fully connected layer, batch normalization and ReLU."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        self.norm = nn.BatchNorm1d(out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Compute the features ``(N, out)``."""
        outputs: Tensor = self.norm(self.linear(features))
        return outputs.relu()


class ResidualBlock(nn.Module):
    """Residual block of two convolutions; with ``pools``, the first also adds a bias from global features."""

    def __init__(self, channels: int, *, pools: bool) -> None:
        super().__init__()
        self.conv1 = ConvBlock(channels, channels, 3)
        self.pooled_bias = nn.Linear(3 * channels, channels) if pools else None
        self.conv2 = ConvBlock(channels, channels, 3, relu=False)

    def forward(self, features: Tensor) -> Tensor:
        """Compute the features ``(N, C, H, W)``."""
        residual: Tensor = self.conv1(features)
        if self.pooled_bias is not None:
            residual = residual + self.pooled_bias(pool_globally(residual))[:, :, None, None]
        outputs: Tensor = features + self.conv2(residual)
        return outputs.relu_()


class BoardHeads(nn.Module):
    """Policy head and value head of the paper, with fully connected layers over the board."""

    def __init__(self, num_moves: int, shape: tuple[int, int], channels: int) -> None:
        super().__init__()
        num_cells = shape[0] * shape[1]
        self.policy_conv, self.value_conv = (ConvBlock(channels, HEAD_CHANNELS, 1) for _ in range(2))
        self.policy = nn.Linear(HEAD_CHANNELS * num_cells, num_moves)
        self.hidden = LinearBlock(HEAD_CHANNELS * num_cells, HIDDEN)
        self.value = nn.Linear(HIDDEN, 1)
        init_output_layers(self.policy, self.value)

    def forward(self, features: Tensor) -> BoardPrediction:
        """Compute the prediction from features ``(N, C, H, W)``."""
        policy = compute_outputs(self.policy, self.policy_conv(features).flatten(1))
        hidden = self.hidden(self.value_conv(features).flatten(1))
        return BoardPrediction(policy, compute_outputs(self.value, hidden).tanh().squeeze(1))


class GoHeads(nn.Module):
    """Heads for Go on boards of any size: policy, value, and optionally score and owners (Wu 2019, appendix A)."""

    def __init__(self, channels: int, *, predicts_score: bool) -> None:
        super().__init__()
        self.policy_conv, self.pooled_conv, self.value_conv = (ConvBlock(channels, HEAD_CHANNELS, 1) for _ in range(3))
        self.policy_bias = nn.Linear(3 * HEAD_CHANNELS, HEAD_CHANNELS)
        self.policy = nn.Conv2d(HEAD_CHANNELS, 1, 1, bias=False)
        self.pass_logit = nn.Linear(3 * HEAD_CHANNELS, 1)
        self.hidden = LinearBlock(3 * HEAD_CHANNELS, HIDDEN)
        self.value = nn.Linear(HIDDEN, 1)
        self.score = nn.Linear(HIDDEN, 1) if predicts_score else None
        self.owners = nn.Conv2d(HEAD_CHANNELS, 1, 1) if predicts_score else None
        init_output_layers(*filter(None, (self.policy, self.pass_logit, self.value, self.score, self.owners)))

    def forward(self, features: Tensor) -> BoardPrediction | GoPrediction:
        """Compute the prediction from features ``(N, C, H, W)``."""
        pooled = pool_globally(self.pooled_conv(features))
        points = (self.policy_conv(features) + self.policy_bias(pooled)[:, :, None, None]).relu()
        policy = torch.cat(
            [compute_outputs(self.policy, points).flatten(1), compute_outputs(self.pass_logit, pooled)], 1
        )
        values = self.value_conv(features)
        hidden = self.hidden(pool_globally(values))
        prediction = BoardPrediction(policy, compute_outputs(self.value, hidden).tanh().squeeze(1))
        if self.score is None or self.owners is None:
            return prediction
        score = SCORE_SCALE * compute_outputs(self.score, hidden).squeeze(1)
        return GoPrediction(*prediction, score, compute_outputs(self.owners, values).tanh().flatten(1))


_Heads = BoardHeads | GoHeads


def pool_globally(features: Tensor) -> Tensor:
    """Pool features ``(N, C, H, W)``: mean, mean scaled by the board size, and maximum, ``(N, 3C)``.

    The second depends on the size, so that a network for several sizes can count points (Wu 2019, appendix A.2).
    """
    mean = features.mean((2, 3))
    side = (features.shape[2] * features.shape[3]) ** 0.5
    return torch.cat([mean, mean * ((side - MEAN_SIZE) / SIZE_SCALE), features.amax((2, 3))], 1)


def compute_outputs(layer: nn.Module, features: Tensor) -> Tensor:
    """Compute the outputs of a layer in float32, or in half precision if its weights are stored in it.

    Also under autocast: with the eight bits of bfloat16, the best of 362 moves often have equal logits.
    """
    parameter = next(layer.parameters())
    with disable_autocast(parameter.device):
        outputs: Tensor = layer(features.to(parameter.dtype))
    return outputs.float()


def init_output_layers(*layers: nn.Module) -> None:
    """Initialize output layers with 0, so that a new network predicts equal moves and a value of 0."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
