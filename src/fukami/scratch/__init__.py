"""NumPy implementation of the note's program: layers with hand-derived gradients, optimizers, trainer, network."""

from .files import load_mnist, read_params
from .layers import Affine, BatchNormalization, Convolution, Dropout, Pooling, Relu, Sigmoid, SoftmaxWithLoss
from .network import DeepConvNet, Trainer
from .optimizers import SGD, AdaGrad, Adam, Momentum, Nesterov, RMSprop

__all__ = ["Affine", "BatchNormalization", "Convolution", "Dropout", "Pooling", "Relu", "Sigmoid", "SoftmaxWithLoss"]
__all__ += ["SGD", "AdaGrad", "Adam", "DeepConvNet", "Momentum", "Nesterov", "RMSprop", "Trainer"]
__all__ += ["load_mnist", "read_params"]
