"""Models: one file per paper, one function per model that returns an ``nn.Module``.

A file is imported when one of its models is first used.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fukami.models.alexnet import alexnet
    from fukami.models.alphago import alphago_zero
    from fukami.models.binary_convnet import binary_convnet, binary_deep_convnet
    from fukami.models.binary_resnet import binary_resnet18
    from fukami.models.dcgan import dcgan_discriminator, dcgan_generator
    from fukami.models.deep_convnet import deep_convnet
    from fukami.models.dqn import dqn
    from fukami.models.faster_rcnn import faster_rcnn_resnet50_fpn, faster_rcnn_vgg16
    from fukami.models.fcn import fcn8s_vgg16, fcn16s_vgg16, fcn32s_vgg16, fcn_resnet50, fcn_resnet101
    from fukami.models.googlenet import googlenet
    from fukami.models.neural_style import neural_style_vgg16, neural_style_vgg19
    from fukami.models.rcnn import rcnn_alexnet, rcnn_vgg16
    from fukami.models.resnet import (
        resnet18,
        resnet20,
        resnet32,
        resnet34,
        resnet44,
        resnet50,
        resnet56,
        resnet101,
        resnet110,
        resnet152,
    )
    from fukami.models.segnet import segnet_basic, segnet_vgg16
    from fukami.models.show_and_tell import show_and_tell
    from fukami.models.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn

__all__ = [
    "alexnet",
    "alphago_zero",
    "binary_convnet",
    "binary_deep_convnet",
    "binary_resnet18",
    "dcgan_discriminator",
    "dcgan_generator",
    "deep_convnet",
    "dqn",
    "faster_rcnn_resnet50_fpn",
    "faster_rcnn_vgg16",
    "fcn8s_vgg16",
    "fcn16s_vgg16",
    "fcn32s_vgg16",
    "fcn_resnet50",
    "fcn_resnet101",
    "googlenet",
    "neural_style_vgg16",
    "neural_style_vgg19",
    "rcnn_alexnet",
    "rcnn_vgg16",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
    "segnet_basic",
    "segnet_vgg16",
    "show_and_tell",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
]

_MODELS = {
    "alexnet": ("alexnet",),
    "alphago": ("alphago_zero",),
    "binary_convnet": (
        "binary_convnet",
        "binary_deep_convnet",
    ),
    "binary_resnet": ("binary_resnet18",),
    "dcgan": (
        "dcgan_discriminator",
        "dcgan_generator",
    ),
    "deep_convnet": ("deep_convnet",),
    "dqn": ("dqn",),
    "faster_rcnn": (
        "faster_rcnn_resnet50_fpn",
        "faster_rcnn_vgg16",
    ),
    "fcn": (
        "fcn8s_vgg16",
        "fcn16s_vgg16",
        "fcn32s_vgg16",
        "fcn_resnet50",
        "fcn_resnet101",
    ),
    "googlenet": ("googlenet",),
    "neural_style": (
        "neural_style_vgg16",
        "neural_style_vgg19",
    ),
    "rcnn": (
        "rcnn_alexnet",
        "rcnn_vgg16",
    ),
    "resnet": (
        "resnet18",
        "resnet20",
        "resnet32",
        "resnet34",
        "resnet44",
        "resnet50",
        "resnet56",
        "resnet101",
        "resnet110",
        "resnet152",
    ),
    "segnet": (
        "segnet_basic",
        "segnet_vgg16",
    ),
    "show_and_tell": ("show_and_tell",),
    "vgg": (
        "vgg11",
        "vgg11_bn",
        "vgg13",
        "vgg13_bn",
        "vgg16",
        "vgg16_bn",
        "vgg19",
        "vgg19_bn",
    ),
}
_FILES = {name: file for file, names in _MODELS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a model on first use."""
    if name not in _FILES:
        raise AttributeError(f"module 'fukami.models' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(importlib.import_module(f"fukami.models.{_FILES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Models(ModuleType):
    """Package in which a name is the model and not the file: Python sets an attribute for each imported file."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, getattr(value, name, value) if isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Models
