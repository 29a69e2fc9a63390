"""Base class of the detection recipes; each recipe adds its network."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fukami.engine.recipe import MAX_IMAGE_SIDE, check_range
from fukami.engine.supervised import IMAGENET_MEAN, IMAGENET_STD, SplitLoading, SupervisedRecipe
from fukami.errors import UsageError

if TYPE_CHECKING:
    from fukami.data.padded_loader import PaddedLoader
    from fukami.data.samples import Sample
    from fukami.data.splits import Splits
    from fukami.image.transform import ResizeTransform

EVAL_BATCH_SIZE = 8  # images per evaluation batch


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(SplitLoading, SupervisedRecipe):
    """Base recipe of an object detector."""

    data: str = "scenes"
    """Dataset: scenes (bundled), bccd, voc-animals, voc2007, voc2012, coco, or a folder or archive in Pascal VOC, COCO
    or YOLO format."""
    min_size: int = 600
    """Input size: shorter side of the resized image, in pixels."""
    max_size: int = 1000
    """Maximum longer side of the resized image, in pixels; takes precedence over min-size."""
    augment: tuple[str, ...] = ("flip",)
    """Data augmentation of the training images and boxes, such as flip crop=0.5 brightness; the flag without a value
    disables it."""
    confidence: float | None = None
    """Minimum score of a predicted box, 0 to 1; by default the one with the highest F1 on the validation data. The
    metrics use all boxes."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 32, MAX_IMAGE_SIDE, "min_size", "max_size")
        if self.max_size < self.min_size:
            raise UsageError(f"max-size should be at least min-size, {self.min_size}, not {self.max_size}")
        if self.confidence is not None:
            check_range(self, 0, 1, "confidence")

    def build_preprocessing(self) -> "ResizeTransform":
        """Build the preprocessing: resizing and normalization of an image."""
        from fukami.image.transform import ResizeTransform

        return ResizeTransform(min_size=self.min_size, max_size=self.max_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def load_splits(self, *, include_train: bool = True) -> "Splits[tuple[Sample, ...]]":
        """Load the boxes and the class names of the dataset; images are not decoded."""
        from fukami.detection import data as detection_data

        return detection_data.load_dataset(
            self.dataset,
            self.val_fraction,
            self.max_unreadable,
            images=self.images,
            include_train=include_train,
        )

    def build_loader(self, split: "tuple[Sample, ...]", labels: tuple[str, ...], *, train: bool) -> "PaddedLoader":
        """Build the loader of the training or the evaluation batches."""
        augmentations, batch_size, seed = (
            (self.augment, self.batch_size, self.seed) if train else ((), EVAL_BATCH_SIZE, None)
        )
        prepare = self.build_preprocessing()
        samples = self.prepare_samples(split, prepare)
        return self.build_padded_loader(samples, labels, prepare, augmentations, batch_size=batch_size, seed=seed)

    def prepare_samples(self, samples: "tuple[Sample, ...]", prepare: "ResizeTransform") -> "tuple[Sample, ...]":
        """Return the samples to load; a detector that takes region proposals adds them."""
        return samples
