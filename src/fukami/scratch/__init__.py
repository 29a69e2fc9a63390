"""The note's own program in NumPy: layers, optimizers, trainer and network, with gradients derived by hand."""

from fukami.scratch.layers import (
    Affine,
    BatchNormalization,
    Convolution,
    Dropout,
    Pooling,
    Relu,
    Sigmoid,
    SoftmaxWithLoss,
)
from fukami.scratch.mnist import load_mnist
from fukami.scratch.network import DeepConvNet
from fukami.scratch.optimizers import SGD, AdaGrad, Adam, Momentum, Nesterov, RMSprop
from fukami.scratch.params import read_params
from fukami.scratch.trainer import Trainer

__all__ = [
    "SGD",
    "AdaGrad",
    "Adam",
    "Affine",
    "BatchNormalization",
    "Convolution",
    "DeepConvNet",
    "Dropout",
    "Momentum",
    "Nesterov",
    "Pooling",
    "RMSprop",
    "Relu",
    "Sigmoid",
    "SoftmaxWithLoss",
    "Trainer",
    "load_mnist",
    "read_params",
]
