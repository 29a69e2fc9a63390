"""Models: one file per paper, one function per model that returns an ``nn.Module``."""

from fukami.models.alexnet import alexnet
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
