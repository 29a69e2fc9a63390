"""Networks: one file per paper, each a plain function that returns an ``nn.Module``."""

from fukami.models.deep_convnet import deep_convnet

__all__ = ["deep_convnet"]
