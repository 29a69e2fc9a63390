"""FCN recipes (Long et al. 2015): fully convolutional networks on VGG-16 and on torchvision's dilated ResNets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from fukami.engine.recipe import FieldGroup, Recipe, check_range, get_field_names, get_recipe
from fukami.errors import UsageError
from fukami.segmentation.recipe import SegmentationRecipe


@dataclass(frozen=True, kw_only=True)
class FCNVGGFields(FieldGroup):
    """Fields of the FCNs on VGG-16, whose fully connected layers become convolutions (Long et al. 2015)."""

    backbone: ClassVar[str] = "vgg16"
    model_arguments: ClassVar[tuple[str, ...]] = (
        "hidden", "dropout", "width_multiplier", "batch_norm", "channels"
    )  # fmt: skip
    init_defaults: ClassVar[Mapping[str, object]] = {
        "min_size": 180, "batch_norm": True, "hidden": 512, "batch_size": 2, "lr": 2e-3, "backbone_lr_factor": 0.1,
        "epochs": 20, "balance": "root",
    }  # fmt: skip

    lr: float = 2e-4
    """Peak learning rate, for the recipe's default batch size."""
    hidden: int = 4096
    """Channels of the two convolutions that replace fully connected layers."""
    dropout: float = 0.5
    """Dropout probability of these two layers."""
    width_multiplier: float = 1.0
    """Width of the other convolutions, relative to the paper."""
    batch_norm: bool = False
    """Batch normalization after every convolution except the last."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 1, math.inf, "hidden")
        check_range(self, 0, 0.99, "dropout")
        check_range(self, 1 / 64, 4, "width_multiplier")

    @property
    def pretrained_name(self) -> str:
        """Name of VGG-16 with or without batch normalization."""
        return self.backbone + ("_bn" if self.batch_norm else "")


@dataclass(frozen=True, kw_only=True)
class SkipFCNFields(FCNVGGFields):
    """Fields of the FCNs with skip connections, which may be trained in stages."""

    coarser_recipes: ClassVar[tuple[str, ...]] = ()  # recipes of the previous stages, the coarsest first

    training: Literal["at-once", "staged"] = "at-once"
    """Training mode: at-once, or staged as in the paper, where each network starts from the next coarser one."""
    stage_lr_factor: float = 0.01
    """Learning-rate factor of each stage of staged training, relative to the previous one; 0.01 in the paper (Long et
    al. 2015, section 4.2)."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 1e-6, 1, "stage_lr_factor")
        if self.training == "at-once" and self.stage_lr_factor != type(self).stage_lr_factor:
            raise UsageError("--stage-lr-factor needs staged training; add --training staged, or omit it")

    def stages(self, folder: Path) -> dict[str, Recipe]:
        """Return the recipes of the coarser networks; each starts from the previous one with a lower learning rate."""
        recipes: dict[str, Recipe] = {}
        if self.training == "at-once":
            return recipes
        values = vars(self)
        init = values["init"]
        for stage, name in enumerate(self.coarser_recipes):
            kind = get_recipe(name)
            shared = get_field_names(kind) - {"training", "stage_lr_factor"}
            fields = {name: value for name, value in values.items() if name in shared}
            fields |= {"init": init, "lr": self.base_lr * self.stage_lr_factor**stage, "lr_scaling": "none"}
            if not values[
                "init"
            ]:  # every layer is new in the first stage, so no stage lowers the backbone's learning rate
                fields["backbone_lr_factor"] = 1.0
            recipes[name] = kind(**fields)
            init = str(folder.resolve() / name)
        return recipes

    @property
    def peak_lr(self) -> float:
        """Peak learning rate; lower in staged training, whose last stage this network is."""
        factor = self.stage_lr_factor ** len(self.coarser_recipes) if self.training == "staged" else 1.0
        return self.base_lr * factor

    @property
    def base_lr(self) -> float:
        """Peak learning rate of the first stage."""
        return super().peak_lr  # type: ignore[misc, no-any-return]  # of the recipe that has these fields


@dataclass(frozen=True, kw_only=True)
class FCN32sVGG16(FCNVGGFields, SegmentationRecipe):
    """FCN-32s: VGG-16 as a fully convolutional network with 32× upsampling (Long et al. 2015, section 4.1).

    Measured only as a stage of fcn8s-vgg16; training runs at 3.9 images per second of 192×160 on 2 cores of an AMD
    EPYC. The paper: 59.4 % mIoU on VOC 2011.

    Example:
        fukami train fcn32s-vgg16 --data camvid --init imagenet
    """


@dataclass(frozen=True, kw_only=True)
class FCN16sVGG16(SkipFCNFields, SegmentationRecipe):
    """FCN-16s: FCN-32s with a skip connection from pool4 (Long et al. 2015, section 4.2).

    Measured only as a stage of fcn8s-vgg16; training runs at 3.9 images per second of 192×160 on 2 cores of an AMD
    EPYC. The paper: 62.4 % mIoU on VOC 2011.

    Example:
        fukami train fcn16s-vgg16 --data camvid --init imagenet
    """

    coarser_recipes: ClassVar[tuple[str, ...]] = ("fcn32s-vgg16",)


@dataclass(frozen=True, kw_only=True)
class FCN8sVGG16(SkipFCNFields, SegmentationRecipe):
    """FCN-8s: FCN-16s with a skip connection from pool3 (Long et al. 2015, section 4.2).

    Result: 56.95 % mIoU on CamVid at half the size after 16 epochs in 31 minutes on 2 cores of an AMD EPYC. The paper:
    62.7 % mIoU on VOC 2011.

    Example:
        fukami train fcn8s-vgg16 --data camvid --init vgg16_features_imagenet.safetensors --batch-norm --hidden
            512 --lr 2e-3 --backbone-lr-factor 0.1 --min-size 180 --epochs 16 --batch-size 2 --balance root
            --augment flip crop=0.5 brightness=0.3
    """

    coarser_recipes: ClassVar[tuple[str, ...]] = ("fcn32s-vgg16", "fcn16s-vgg16")


@dataclass(frozen=True, kw_only=True)
class FCNResNetFields(FieldGroup):
    """Fields of the FCNs with a dilated ResNet."""

    model_arguments: ClassVar[tuple[str, ...]] = ("aux_loss", "channels")

    init: str = ""
    """Initial weights: coco or imagenet (torchvision's network or classifier, downloaded), a state-dict file of either
    or a run's folder."""
    aux_loss: bool = True
    """Auxiliary loss on the scores of layer3 in training, with weight 0.5."""


@dataclass(frozen=True, kw_only=True)
class FCNResNet50(FCNResNetFields, SegmentationRecipe):
    """FCN with a dilated ResNet-50, as in torchvision (Long et al. 2015).

    mIoU not measured; training runs at 4.9 images per second of 192×160 on 2 cores of an AMD EPYC. torchvision's
    weights, which --init coco downloads, have 60.5 % mIoU on COCO with the VOC classes.

    Example:
        fukami train fcn-resnet50 --data camvid --init coco
    """

    backbone: ClassVar[str] = "resnet50"


@dataclass(frozen=True, kw_only=True)
class FCNResNet101(FCNResNetFields, SegmentationRecipe):
    """FCN with a dilated ResNet-101, as in torchvision (Long et al. 2015).

    mIoU not measured; training runs at 3.7 images per second of 192×160 on 2 cores of an AMD EPYC. torchvision's
    weights, which --init coco downloads, have 63.7 % mIoU on COCO with the VOC classes.

    Example:
        fukami train fcn-resnet101 --data camvid --init coco
    """

    backbone: ClassVar[str] = "resnet101"
