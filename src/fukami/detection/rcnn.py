"""Recipes of R-CNN (Girshick et al. 2014): fine-tuning, SVMs and bounding-box regression, one per stage, and all."""

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from fukami.detection.recipe import DetectionRecipe
from fukami.engine.recipe import (
    MAX_IMAGE_SIDE,
    MAX_INPUT_SIZE,
    Data,
    FieldGroup,
    Recipe,
    check_range,
    get_field_names,
    get_recipe_name,
)
from fukami.engine.supervised import OptimizerName, SupervisedRecipe
from fukami.errors import UsageError

if TYPE_CHECKING:
    from fukami.data.padded_loader import PaddedLoader
    from fukami.data.samples import Sample
    from fukami.detection.frozen_feature_task import BoxRegressionFitter, SVMFitter
    from fukami.detection.rcnn_task import RCNNTask, RegionSettings
    from fukami.image.transform import ResizeTransform
    from fukami.models.rcnn import RCNN as RCNNModel

Stage = TypeVar("Stage", bound=DetectionRecipe)

MIN_REGION_SIZES = {"alexnet": 63, "vgg16": 32}  # minimum side of a region for each backbone, in pixels

SHARED_FIELDS = (  # equal in all stages: they define the network, its regions and the held-out images
    "backbone", "size", "context_padding", "hidden", "width_multiplier", "batch_norm", "min_size", "max_size", "mode",
    "val_fraction",
)  # fmt: skip

GRADIENT_FIELDS = (  # without effect in the stages that do not train by gradient descent
    "epochs", "eval_every", "patience", "batch_size", "accumulate", "activation_checkpointing", "optimizer", "lr",
    "lr_scaling", "clip_norm", "momentum", "weight_decay", "schedule", "drop_factor", "warmup", "augment",
    "regions_per_image", "dropout",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RegionFields(FieldGroup):
    """Fields of all stages: the network, which classifies each proposed region separately, and the regions."""

    min_size: int = 375
    """Shorter side of the resized image, in which regions are proposed and from which they are warped, in pixels."""
    max_size: int = 500
    """Maximum longer side of the resized image, in pixels; takes precedence over min-size."""
    backbone: Literal["alexnet", "vgg16"] = "alexnet"
    """Network that classifies a region."""
    size: int = 227
    """Input size: side of a warped region, in pixels; VGG-16 was designed for 224."""
    context_padding: int = 16
    """Context around the region on each side of the warped region, in pixels."""
    mode: Literal["fast", "quality"] = "fast"
    """Mode of Selective Search: 8 groupings (fast) or 80 (quality)."""
    hidden: int = 4096
    """Number of units of the two hidden fully connected layers."""
    dropout: float = 0.5
    """Dropout probability of these units."""
    width_multiplier: float = 1.0
    """Multiplier of the number of channels of the convolutions."""
    batch_norm: bool = False
    """Batch normalization after each convolution."""
    regions_per_image: int = 16
    """Number of regions per image and step; at most a quarter of them are positive."""
    cache_limit: float = 10.0
    """Disk space of the feature cache, in gigabytes; further features are recomputed. 0 disables the cache."""
    init: str = ""
    """Initial weights."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, MIN_REGION_SIZES[self.backbone], MAX_INPUT_SIZE, "size")
        check_range(self, 1, MAX_IMAGE_SIDE, "min_size", "max_size")
        check_range(self, 0, (self.size - 1) // 2, "context_padding")
        check_range(self, 1, math.inf, "hidden")
        check_range(self, 4, math.inf, "regions_per_image")
        check_range(self, 0, math.inf, "cache_limit")
        check_range(self, 0, 0.99, "dropout")
        check_range(self, 1 / 64, 4, "width_multiplier")
        if isinstance(self, SupervisedRecipe) and self.activation_checkpointing:
            raise UsageError("R-CNN does not support --activation-checkpointing; use --accumulate to save memory")

    def build_model(self, num_classes: int) -> "RCNNModel":
        """Build the network for ``num_classes`` classes without the background."""
        from fukami import models

        build = {"alexnet": models.rcnn_alexnet, "vgg16": models.rcnn_vgg16}[self.backbone]
        return build(
            num_classes,
            size=self.size,
            hidden=self.hidden,
            dropout=self.dropout,
            width_multiplier=self.width_multiplier,
            batch_norm=self.batch_norm,
        )

    def build_region_settings(self) -> "RegionSettings":
        """Build the settings of the region proposals, the warping and the feature cache."""
        from fukami.detection.rcnn_task import RegionSettings

        return RegionSettings(self.size, self.context_padding, self.mode, self.cache_limit, self.regions_per_image)

    def prepare_samples(self, samples: "tuple[Sample, ...]", prepare: "ResizeTransform") -> "tuple[Sample, ...]":
        """Add the region proposals of Selective Search to the boxes of each sample."""
        import numpy as np

        from fukami.data.samples import PROPOSAL
        from fukami.detection.rcnn_task import filter_proposals
        from fukami.selective_search import cache

        extended_samples = []
        for sample, boxes in zip(samples, cache.compute_proposals(samples, self.mode, prepare), strict=True):
            proposals = filter_proposals(boxes)
            ratio = np.tile(np.array(sample.size) / np.array(prepare.compute_size(*sample.size)), 2)
            extended_sample = dataclasses.replace(
                sample,
                boxes=np.concatenate([sample.boxes, (proposals * ratio).astype(np.float32)]),
                classes=np.concatenate([sample.classes, np.full(len(proposals), -1)]),
                kinds=np.concatenate([sample.kinds, np.full(len(proposals), PROPOSAL, np.uint8)]),
            )
            extended_samples.append(extended_sample)
        return tuple(extended_samples)


@dataclass(frozen=True, kw_only=True)
class FinetuningFields(RegionFields):
    """Fields of the stages that begin with fine-tuning."""

    epochs: int = 30
    """Number of epochs."""
    eval_every: int = 10
    """Evaluation interval in epochs; the last epoch is always evaluated."""
    batch_size: int = 8
    """Global batch size, over all processes."""
    optimizer: OptimizerName = "momentum"
    """Optimizer; momentum and nesterov are SGD."""
    lr: float = 1e-3
    """Peak learning rate; the paper's value is for a network pretrained on ImageNet."""
    init: str = ""
    """Initial weights of the classifier: imagenet (torchvision's, downloaded), a state-dict file or a run's folder."""

    def initialize_task(self, task: "RCNNTask") -> None:
        """Load the weights of ``init``."""
        from fukami.engine import pretrained

        if self.init:
            pretrained.initialize_classifier(task.model.get_submodule("network"), self.backbone, self.init)


def load_stage_weights(task: "RCNNTask", folder: Path) -> None:
    """Load the weights of the previous stage's run.

    Raises:
        UsageError: the run has other classes.
    """
    from fukami.engine import run_record, run_weights

    labels = run_record.read_labels(folder)
    if labels != task.labels:
        raise UsageError(f"{folder} has the classes {', '.join(labels)}, and the data have {', '.join(task.labels)}")
    tensors = run_weights.read_weights(folder)
    run_weights.check_tensors(task.get_modules(), tensors, run_weights.locate_weights(folder))
    task.model.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items()})


def _format_flag(name: str, value: object) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


@dataclass(frozen=True, kw_only=True)
class RCNNFinetune(FinetuningFields, DetectionRecipe):
    """R-CNN's first stage: fine-tuning of a network on region proposals (Girshick et al. 2014, section 2.3).

    Result: 73.98 % mAP on BCCD at 320 pixels as the first stage of rcnn. The paper does not report this stage; with
    SVMs it has 54.2 % mAP on VOC 2007.

    Example:
        fukami train rcnn-finetune --data my-boxes --init imagenet
    """

    def build_task(self, labels: tuple[str, ...]) -> "RCNNTask":
        """Build the task of the stage for the classes ``labels``."""
        from fukami.detection.rcnn_task import RCNNFinetuneTask

        return RCNNFinetuneTask(
            self.build_model(len(labels)),
            labels,
            self.build_preprocessing(),
            self.build_region_settings(),
            confidence=self.confidence,
            **self.get_training_options(),
        )


@dataclass(frozen=True, kw_only=True)
class SVMFields(FieldGroup):
    """Fields of the linear SVMs."""

    svm_cost: float = 1e-3
    """Regularization parameter C of the SVMs, for features of norm 20; positives have weight 2."""
    svm_iou: float = 0.3
    """IoU threshold: a region below it with all objects of a class is a negative."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 1e-12, math.inf, "svm_cost")
        check_range(self, 0.01, 1, "svm_iou")


@dataclass(frozen=True, kw_only=True)
class BoxRegressionFields(FieldGroup):
    """Fields of the bounding-box regression."""

    box_ridge: float = 1000.0
    """Regularization parameter λ of the bounding-box regression, for features of norm 20."""
    box_iou: float = 0.6
    """Minimum IoU between a training region of the bounding-box regression and an object."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 0, math.inf, "box_ridge")
        check_range(self, 0.01, 1, "box_iou")


@dataclass(frozen=True, kw_only=True)
class FrozenFeatureRecipe(RegionFields, DetectionRecipe):
    """Base recipe of a stage that continues a run of the previous stage and fits layers to its frozen features."""

    previous_recipe: ClassVar[str]

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        changed = [name for name in GRADIENT_FIELDS if getattr(self, name) != getattr(type(self), name)]
        if changed:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in changed)
            raise UsageError(f"{get_recipe_name(type(self))} does not train by gradient descent: remove {flags}")

    def build_fitter(self) -> "SVMFitter | BoxRegressionFitter":
        """Build the fitter of the stage."""
        raise NotImplementedError

    def find_previous_run(self) -> Path:
        """Find the run folder of the previous stage.

        Raises:
            UsageError: it does not exist, belongs to another stage, is not finished, or has other field values.
        """
        from fukami.engine import run_folder, run_record

        recipe_name, previous_recipe = get_recipe_name(type(self)), self.previous_recipe
        if not self.init:
            raise UsageError(f"{recipe_name} continues a run of {previous_recipe}; specify its folder with --init DIR")
        folder = run_folder.locate_run(self.init)
        other, _ = run_record.read_recipe(folder)
        if (name := get_recipe_name(type(other))) != previous_recipe:
            raise UsageError(f"{folder} is a run of {name}; {recipe_name} continues a run of {previous_recipe}")
        if not run_record.is_finished(folder):
            raise UsageError(
                f"{folder} is not finished; resume it first: fukami train {previous_recipe} --out {folder} --resume"
            )
        different_fields = {
            name: getattr(other, name) for name in SHARED_FIELDS if getattr(other, name) != getattr(self, name)
        }
        if different_fields:
            flags = " ".join(_format_flag(name, value) for name, value in different_fields.items())
            raise UsageError(f"{folder} was trained with other field values; use the same ones: {flags}")
        return folder

    def load_data(self) -> Data:
        """Load the dataset, after checking that the previous stage's run exists."""
        self.find_previous_run()
        return super().load_data()

    def build_loader(self, split: "tuple[Sample, ...]", labels: tuple[str, ...], *, train: bool) -> "PaddedLoader":
        """Build the loader; training batches have one image each, shuffled by the seed, without augmentation."""
        if not train:
            return super().build_loader(split, labels, train=False)
        prepare = self.build_preprocessing()
        samples = self.prepare_samples(split, prepare)
        return self.build_padded_loader(samples, labels, prepare, (), batch_size=1, seed=self.seed)

    def build_task(self, labels: tuple[str, ...]) -> "RCNNTask":
        """Build the task of the stage for the classes ``labels``."""
        from fukami.detection.frozen_feature_task import FrozenFeatureTask

        return FrozenFeatureTask(
            self.build_model(len(labels)),
            labels,
            self.build_preprocessing(),
            self.build_region_settings(),
            self.build_fitter(),
            self.confidence,
        )

    def initialize_task(self, task: "RCNNTask") -> None:
        """Load the weights of the previous stage."""
        load_stage_weights(task, self.find_previous_run())


@dataclass(frozen=True, kw_only=True)
class RCNNSVM(SVMFields, FrozenFeatureRecipe):
    """R-CNN's second stage: linear SVMs with hard negative mining (Girshick et al. 2014, section 2.3).

    Result: 71.96 % mAP on BCCD at 320 pixels as the second stage of rcnn. The paper: 54.2 % mAP on VOC 2007.

    Example:
        fukami train rcnn-svm --data my-boxes --init runs/rcnn-finetune
    """

    previous_recipe: ClassVar[str] = "rcnn-finetune"

    init: str = ""
    """Folder of a finished run of rcnn-finetune."""

    def build_fitter(self) -> "SVMFitter":
        """Build the fitter of the SVMs."""
        from fukami.detection.frozen_feature_task import SVMFitter

        return SVMFitter(cost=self.svm_cost, negative_iou_threshold=self.svm_iou, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class RCNNBoxes(BoxRegressionFields, FrozenFeatureRecipe):
    """R-CNN's third stage: bounding-box regression (Girshick et al. 2014, appendix C).

    Result: 73.60 % mAP on BCCD at 320 pixels as the last stage of rcnn. The paper: 58.5 % mAP on VOC 2007.

    Example:
        fukami train rcnn-boxes --data my-boxes --init runs/rcnn-svm
    """

    previous_recipe: ClassVar[str] = "rcnn-svm"

    init: str = ""
    """Folder of a finished run of rcnn-svm."""

    def build_fitter(self) -> "BoxRegressionFitter":
        """Build the fitter of the box regressors."""
        from fukami.detection.frozen_feature_task import BoxRegressionFitter

        return BoxRegressionFitter(ridge=self.box_ridge, min_iou=self.box_iou)


@dataclass(frozen=True, kw_only=True)
class RCNN(FinetuningFields, SVMFields, BoxRegressionFields, DetectionRecipe):
    """R-CNN: region proposals, a fine-tuned network, linear SVMs and bounding-box regression (Girshick et al. 2014).

    Result: 73.60 % mAP on BCCD at 320 pixels after all stages in 104 minutes on 2 cores of an AMD EPYC. The paper:
    58.5 % mAP on VOC 2007.

    Example:
        fukami train rcnn --data bccd --backbone vgg16 --init vgg16_features_imagenet.safetensors --min-size 320
            --max-size 448 --size 64 --context-padding 5 --hidden 1024 --dropout 0.3 --regions-per-image 32
            --batch-size 2 --lr 3e-3 --clip-norm 10 --epochs 5 --augment flip flip-vertical brightness=0.2
            contrast=0.2
    """

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        self.stages(Path())
        self._build_stage(RCNNBoxes, "")

    def stages(self, folder: Path) -> dict[str, Recipe]:
        """Return the recipes of fine-tuning and of the SVMs.

        Raises:
            UsageError: there are several processes; the later stages are fitted by one.
        """
        if (world := int(os.environ.get("WORLD_SIZE", 1))) > 1:
            raise UsageError(
                f"one process fits the SVMs and box regressors of R-CNN, not {world}; start one, or train the stages "
                "one by one: rcnn-finetune with several processes, then rcnn-svm and rcnn-boxes"
            )
        svm = self._build_stage(RCNNSVM, str(folder.resolve() / "finetune"))
        return {"finetune": self._build_stage(RCNNFinetune, self.init), "svm": svm}

    def _build_stage(self, kind: type[Stage], init: str) -> Stage:
        """Build the recipe of a stage from the fields of this recipe."""
        names = get_field_names(kind) & get_field_names(type(self))
        unused = () if kind is RCNNFinetune else GRADIENT_FIELDS
        return kind(**{name: getattr(self, name) for name in names.difference(unused)} | {"init": init})

    def build_loader(self, split: "tuple[Sample, ...]", labels: tuple[str, ...], *, train: bool) -> "PaddedLoader":
        """Build the loader of the last stage, the bounding-box regression."""
        return self._build_stage(RCNNBoxes, "").build_loader(split, labels, train=train)

    def build_task(self, labels: tuple[str, ...]) -> "RCNNTask":
        """Build the task of the last stage, the bounding-box regression, for the classes ``labels``."""
        return self._build_stage(RCNNBoxes, "").build_task(labels)

    def continue_from_stage(self, task: "RCNNTask", run: Path) -> None:
        """Load the network and the SVMs of the previous stage."""
        load_stage_weights(task, run)
