"""R-CNN (Girshick et al. 2014): region proposals, a fine-tuned network, SVMs and box regression, stage by stage."""

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.detection.recipe import DetectionRecipe
from fukami.engine.recipe import MAX_IMAGE_SIDE, MAX_INPUT_SIZE, Data, Recipe, check_range, get_recipe_name
from fukami.errors import UsageError

if TYPE_CHECKING:
    from fukami.data.padded_loader import PaddedLoader
    from fukami.data.samples import Sample
    from fukami.detection.rcnn_task import RCNNTask as Regional
    from fukami.detection.rcnn_task import RegionSettings
    from fukami.engine.task import Task
    from fukami.models.rcnn import RCNN as RCNNModel


MIN_REGION_SIZES = {"alexnet": 63, "vgg16": 32}  # pixels of a region that the backbone needs

SHARED_FIELDS = (  # in which all stages have to agree: the network, its regions, and what is kept to judge on
    "backbone", "size", "context_padding", "hidden", "width_multiplier", "batch_norm", "min_size", "max_size", "mode",
    "holdout",
)  # fmt: skip

GRADIENT_FIELDS = (  # where nothing is learned by gradients
    "epochs", "eval_every", "batch_size", "accumulate", "activation_checkpointing", "optimizer", "lr", "lr_scaling",
    "clip_norm", "momentum", "weight_decay", "schedule", "drop_factor", "warmup", "augment", "regions_per_image",
    "dropout",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RCNNRecipe(DetectionRecipe):
    """A network that looks at each proposed region by itself."""

    paper: ClassVar[str] = "Girshick et al., Rich feature hierarchies for accurate object detection"
    year: ClassVar[int] = 2014

    min_size: int = 375
    """Shorter side of the images in which regions are proposed, and from which they are warped, in pixels."""
    max_size: int = 500
    """The longer side at most; a longer image is made smaller still."""
    backbone: Literal["alexnet", "vgg16"] = "alexnet"
    """The classifier that looks at a region."""
    size: int = 227
    """Side of a warped region in pixels; VGG-16 was made for 224."""
    context_padding: int = 16
    """Pixels of it on each side that show what is around the region."""
    mode: Literal["fast", "quality"] = "fast"
    """Of Selective Search: 8 or 80 groupings."""
    hidden: int = 4096
    """Units of the two affine layers."""
    dropout: float = 0.5
    """Share of them dropped in training."""
    width_multiplier: float = 1.0
    """Share of the paper's channels in the convolutions."""
    batch_norm: bool = False
    """Batch normalisation after every convolution."""
    regions_per_image: int = 16
    """Regions of each image in an update, a quarter of them objects at most."""
    cache_limit: float = 10.0
    """Gigabytes of disk that features of regions may take; what does not fit is computed again. 0: none are kept."""
    init: str = ""
    """What to begin with."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, MIN_REGION_SIZES[self.backbone], MAX_INPUT_SIZE, "size")
        check_range(self, 1, MAX_IMAGE_SIDE, "min_size", "max_size")
        check_range(self, 0, (self.size - 1) // 2, "context_padding")
        check_range(self, 1, math.inf, "hidden")
        check_range(self, 4, math.inf, "regions_per_image")
        check_range(self, 0, math.inf, "cache_limit")
        check_range(self, 0, 0.99, "dropout")
        check_range(self, 1 / 64, 4, "width_multiplier")
        if self.activation_checkpointing:
            raise UsageError("R-CNN cannot rematerialise; give --accumulate, which takes less memory, too")

    def build_model(self, num_classes: int) -> "RCNNModel":
        """The network, for so many classes without the background."""
        from fukami import models

        make = {"alexnet": models.rcnn_alexnet, "vgg16": models.rcnn_vgg16}[self.backbone]
        return make(
            num_classes,
            size=self.size,
            hidden=self.hidden,
            dropout=self.dropout,
            width_multiplier=self.width_multiplier,
            batch_norm=self.batch_norm,
        )

    def build_task(self, labels: tuple[str, ...]) -> "Regional":
        """A detector of ``labels``; each stage has its own."""
        raise NotImplementedError(f"{type(self).__name__} does not define build_task(labels)")

    def build_region_settings(self) -> "RegionSettings":
        """How regions are found, warped and remembered."""
        from fukami.detection.rcnn_task import RegionSettings

        return RegionSettings(self.size, self.context_padding, self.mode, self.cache_limit, self.regions_per_image)

    def build_loader(self, samples: "tuple[Sample, ...]", labels: tuple[str, ...], *, train: bool) -> "PaddedLoader":
        """Batches of a part of the data, with proposals."""
        return super().build_loader(self.add_proposals(samples), labels, train=train)

    def add_proposals(self, samples: "tuple[Sample, ...]") -> "tuple[Sample, ...]":
        """The images with the proposals of Selective Search beside their objects."""
        import numpy as np

        from fukami.data.samples import PROPOSAL
        from fukami.detection.rcnn_task import filter_proposals
        from fukami.selective_search import cache

        prepare, found = self.build_preprocessing(), []
        for sample, every in zip(samples, cache.compute_proposals(samples, self.mode, prepare), strict=True):
            own = filter_proposals(every)
            ratio = np.tile(np.array(sample.size) / np.array(prepare.compute_size(*sample.size)), 2)
            more = dataclasses.replace(
                sample,
                boxes=np.concatenate([sample.boxes, (own * ratio).astype(np.float32)]),
                classes=np.concatenate([sample.classes, np.full(len(own), -1)]),
                kinds=np.concatenate([sample.kinds, np.full(len(own), PROPOSAL, np.uint8)]),
            )
            found.append(more)
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class RCNNSolverRecipe(RCNNRecipe):
    """A stage that goes on from the run of the one before, one image after another."""

    previous_recipe: ClassVar[str] = ""  # the name of the recipe before

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        given = [name for name in GRADIENT_FIELDS if getattr(self, name) != getattr(type(self), name)]
        if given:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"nothing is learned by gradients in {get_recipe_name(type(self))}: leave out {flags}")

    def load_data(self) -> Data:
        """The data set, once it is sure that there is a run to go on from."""
        self.find_previous_run()
        return super().load_data()

    def build_loader(self, samples: "tuple[Sample, ...]", labels: tuple[str, ...], *, train: bool) -> "PaddedLoader":
        """Batches of a part of the data, with proposals; what is learned from comes as it is, image by image."""
        return (
            build_sequential_loader(self, samples, labels)
            if train
            else super().build_loader(samples, labels, train=False)
        )

    def find_previous_run(self) -> Path:
        """The folder of the run before.

        Raises:
            UsageError: there is none, it is of another stage or not finished, or its network is another one.
        """
        from fukami.engine import checkpoint

        own = get_recipe_name(type(self))
        if not self.init:
            raise UsageError(f"{own} goes on from a run of {self.previous_recipe}; give its folder: --init DIR")
        folder = checkpoint.locate_run(self.init)
        other, _ = checkpoint.read_recipe(folder)
        if get_recipe_name(type(other)) != self.previous_recipe:
            raise UsageError(
                f"{folder} is a run of {get_recipe_name(type(other))}; {own} goes on from one of {self.previous_recipe}"
            )
        if not checkpoint.is_finished(folder):
            raise UsageError(
                f"{folder} is not finished; go on with it first: fukami train {self.previous_recipe} --out {folder} "
                "--resume"
            )
        differ = {name: getattr(other, name) for name in SHARED_FIELDS if getattr(other, name) != getattr(self, name)}
        if differ:
            flags = " ".join(_format_flag(name, value) for name, value in differ.items())
            raise UsageError(f"{folder} has other fields; give the same ones: {flags}")
        return folder

    def initialize_task(self, task: "Task") -> None:
        """Take the network of the run before."""
        load_stage_weights(task, self.find_previous_run())


def build_sequential_loader(
    recipe: RCNNRecipe, samples: "tuple[Sample, ...]", labels: tuple[str, ...]
) -> "PaddedLoader":
    """The images one by one with their proposals, in an order of the seed, and not augmented."""
    from fukami.data import padded_loader

    return padded_loader.build_padded_loader(
        recipe.add_proposals(samples),
        labels,
        recipe.build_preprocessing(),
        batch_size=1,
        seed=recipe.seed,
        memory_limit=recipe.memory_limit,
        max_broken=recipe.max_broken,
    )


def load_stage_weights(task: "Task", folder: Path) -> None:
    """Go on with the weights of the stage before.

    Raises:
        UsageError: it had other classes.
    """
    from fukami.engine import checkpoint

    labels = checkpoint.read_labels(folder)
    own = getattr(task, "labels", ())
    if labels != own:
        raise UsageError(f"{folder} knows the classes {', '.join(labels)}, and the data have {', '.join(own)}")
    tensors = checkpoint.read_weights(folder)
    checkpoint.check_tensors(task.get_modules(), tensors, folder / "weights.safetensors")
    task.model.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items()})


def _format_flag(name: str, value: object) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


@dataclass(frozen=True, kw_only=True)
class RCNNFinetune(RCNNRecipe):
    """R-CNN's first stage (Girshick et al. 2014): a classifier learns to name regions; its softmax detects."""

    paper_result: ClassVar[str] = "not given; with the SVMs 54.2 % mAP VOC 2007"

    epochs: int = 30
    """Passes over the training set."""
    eval_every: int = 10
    """Passes between two evaluations; there is one at the end in any case."""
    batch_size: int = 8
    """Images in an update, over all processes."""
    optimizer: Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"] = "momentum"
    """How gradients become updates, as torch has it; momentum and nesterov are SGD."""
    lr: float = 1e-3
    """Peak learning rate of the recipe's own batch; the paper's is for a network that has seen ImageNet."""
    init: str = ""
    """Weights of a classifier to begin with: imagenet (torchvision's, downloaded), a file of a state dict, or a run's
    folder."""

    def build_task(self, labels: tuple[str, ...]) -> "Regional":
        """A detector of ``labels``."""
        from fukami.detection.rcnn_task import RCNNFinetuneTask

        return RCNNFinetuneTask(
            self.build_model(len(labels)),
            labels,
            self.build_preprocessing(),
            self.build_region_settings(),
            **self.get_training_options(),
        )

    def initialize_task(self, task: "Task") -> None:
        """Put the weights of ``init`` into the network."""
        from fukami.engine import pretrained

        if self.init:
            pretrained.initialize_classifier(task.model.get_submodule("network"), self.backbone, self.init)


@dataclass(frozen=True, kw_only=True)
class RCNNSVM(RCNNSolverRecipe):
    """R-CNN's second stage (Girshick et al. 2014): linear SVMs with mined negatives, on a run of rcnn-finetune."""

    paper_result: ClassVar[str] = "54.2 % mAP VOC 2007"
    previous_recipe: ClassVar[str] = "rcnn-finetune"

    init: str = ""
    """The folder of a finished run of rcnn-finetune."""
    svm_cost: float = 1e-3
    """C of the SVMs, for features of norm 20; positives count twice."""
    svm_iou: float = 0.3
    """IoU with the objects of a class below which a region is its negative."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, 1e-12, math.inf, "svm_cost")
        check_range(self, 0.01, 1, "svm_iou")

    def build_task(self, labels: tuple[str, ...]) -> "Regional":
        """A detector of ``labels``."""
        from fukami.detection.rcnn_svm_task import SVMTask

        return SVMTask(self.build_model(len(labels)), labels, self.build_preprocessing(), self.build_region_settings(),
                        cost=self.svm_cost, max_iou=self.svm_iou, seed=self.seed)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RCNNBoxes(RCNNSolverRecipe):
    """R-CNN's third stage (Girshick et al. 2014): regressed boxes, on a run of rcnn-svm."""

    paper_result: ClassVar[str] = "58.5 % mAP VOC 2007"
    previous_recipe: ClassVar[str] = "rcnn-svm"

    init: str = ""
    """The folder of a finished run of rcnn-svm."""
    box_ridge: float = 1000.0
    """Weight of the penalty, λ, for features of norm 20."""
    box_iou: float = 0.6
    """IoU with an object from which on a region is learned from."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, 0, math.inf, "box_ridge")
        check_range(self, 0.01, 1, "box_iou")

    def build_task(self, labels: tuple[str, ...]) -> "Regional":
        """A detector of ``labels``."""
        from fukami.detection.rcnn_svm_task import BoxRegressionTask

        return BoxRegressionTask(
            self.build_model(len(labels)),
            labels,
            self.build_preprocessing(),
            self.build_region_settings(),
            ridge=self.box_ridge,
            min_iou=self.box_iou,
        )


@dataclass(frozen=True, kw_only=True)
class RCNN(RCNNFinetune):
    """R-CNN (Girshick et al. 2014): proposed regions, a fine-tuned network, linear SVMs and regressed boxes."""

    paper_result: ClassVar[str] = "58.5 % mAP VOC 2007"
    reproduced_result: ClassVar[str] = "73.15 % mAP BCCD, 320 pixels, one seed"

    svm_cost: float = 1e-3
    """C of the SVMs, for features of norm 20; positives count twice."""
    svm_iou: float = 0.3
    """IoU with the objects of a class below which a region is its negative."""
    box_ridge: float = 1000.0
    """Weight of the penalty of the regressed boxes, λ, for features of norm 20."""
    box_iou: float = 0.6
    """IoU with an object from which on its box is learned from a region."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        self.stages(Path())
        self._build_stage(RCNNBoxes, "")

    def stages(self, folder: Path) -> dict[str, Recipe]:
        """Fine-tuning and the SVMs.

        Raises:
            UsageError: there are several processes, and the later stages are solved by one.
        """
        if (world := int(os.environ.get("WORLD_SIZE", 1))) > 1:
            raise UsageError(
                f"the SVMs and boxes of R-CNN are solved by one process, not {world}; start one, or train the stages "
                "by themselves: rcnn-finetune with several processes, then rcnn-svm and rcnn-boxes"
            )
        svm = self._build_stage(RCNNSVM, str(folder.resolve() / "finetune"))
        return {"finetune": self._build_stage(RCNNFinetune, self.init), "svm": svm}

    def _build_stage(self, kind: type[RCNNRecipe], init: str) -> RCNNRecipe:
        """A stage of this recipe, with the fields that it has."""
        names = {field.name for field in dataclasses.fields(kind)} & {field.name for field in dataclasses.fields(self)}
        idle = GRADIENT_FIELDS if issubclass(kind, RCNNSolverRecipe) else ()
        return kind(**{name: getattr(self, name) for name in names.difference(idle)} | {"init": init})

    def build_loader(self, samples: "tuple[Sample, ...]", labels: tuple[str, ...], *, train: bool) -> "PaddedLoader":
        """Batches for the last stage, the boxes."""
        return self._build_stage(RCNNBoxes, "").build_loader(samples, labels, train=train)

    def build_task(self, labels: tuple[str, ...]) -> "Regional":
        """A detector of ``labels`` by SVMs, whose boxes the last stage finds."""
        return self._build_stage(RCNNBoxes, "").build_task(labels)

    def continue_from_stage(self, task: "Task", run: Path) -> None:
        """Take the network and the SVMs of the stage before."""
        load_stage_weights(task, run)
