"""SegNet recipes (Badrinarayanan et al. 2017): the decoder unpools with the encoder's pooling indices."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from fukami.engine.recipe import check_range
from fukami.segmentation.recipe import SegmentationRecipe


@dataclass(frozen=True, kw_only=True)
class SegNetVGG16(SegmentationRecipe):
    """SegNet: VGG-16 and a decoder that unpools with the encoder's pooling indices (Badrinarayanan et al. 2017).

    Result: 52.40 % mIoU on CamVid at half the size after 36 epochs in 84 minutes on 2 cores of an AMD EPYC. The
    paper reports 60.1 % with 3,433 training images.

    Example:
        fukami train segnet-vgg16 --data camvid --init vgg16_features_imagenet.safetensors --lr 3e-3
            --backbone-lr-factor 0.08 --min-size 180 --epochs 36 --batch-size 2 --augment flip crop=0.5
            brightness=0.3
    """

    backbone: ClassVar[str] = "vgg16_bn"
    model_arguments: ClassVar[tuple[str, ...]] = ("width_multiplier", "channels")
    init_defaults: ClassVar[Mapping[str, object]] = {"min_size": 180, "batch_size": 2, "epochs": 20}

    batch_size: int = 4
    """Global batch size, over all processes."""
    lr: float = 3e-3
    """Peak learning rate, for the recipe's default batch size."""
    backbone_lr_factor: float = 0.08
    """Learning-rate factor of the backbone layers that init loads."""
    balance: Literal["none", "median", "root"] = "root"
    """Class weights of the loss: none, median-frequency balancing (median) or its square root (root)."""
    width_multiplier: float = 1.0
    """Width of the network, relative to the paper."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 1 / 64, 4, "width_multiplier")


@dataclass(frozen=True, kw_only=True)
class SegNetBasic(SegmentationRecipe):
    """SegNet-Basic: four encoders and four decoders of 7×7 convolutions, from scratch (Badrinarayanan et al. 2017).

    Result: 43.75 % mIoU on CamVid at half the size after 40 epochs on 2 cores of an AMD EPYC. The paper: 47.7 %.
    Training runs at 12 images per second of 192×160 on 2 cores of an AMD EPYC.

    Example:
        fukami train segnet-basic --data camvid --lr 2e-3 --min-size 180 --epochs 40 --batch-size 2 --augment
            flip crop=0.5 brightness=0.3
    """

    model_arguments: ClassVar[tuple[str, ...]] = ("channels", "num_filters")

    batch_size: int = 4
    """Global batch size, over all processes."""
    lr: float = 2e-3
    """Peak learning rate, for the recipe's default batch size."""
    balance: Literal["none", "median", "root"] = "root"
    """Class weights of the loss: none, median-frequency balancing (median) or its square root (root)."""
    num_filters: int = 64
    """Number of filters of every convolution."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 1, math.inf, "num_filters")
