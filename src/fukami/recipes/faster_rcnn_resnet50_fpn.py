"""Faster R-CNN on a feature pyramid of ResNet-50, whose published weights know 91 categories."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fukami.detector import FasterRCNN

if TYPE_CHECKING:
    from fukami.models.faster_rcnn import FasterRCNN as Network


@dataclass(frozen=True, kw_only=True)
class FasterRCNNResNet50FPN(FasterRCNN):
    """Faster R-CNN on a feature pyramid of ResNet-50 (Lin et al. 2017), as torchvision has it."""

    paper: ClassVar[str] = "Lin et al., Feature Pyramid Networks for Object Detection"
    year: ClassVar[int] = 2017
    published: ClassVar[str] = "37.0 % AP COCO (torchvision)"
    backbone: ClassVar[str] = "resnet50"
    prefix: ClassVar[str] = "backbone.body"

    shortest: int = 800
    """Shorter side of the pictures that the network sees, in pixels."""
    longest: int = 1333
    """The longer side at most; a longer picture is made smaller still."""
    init: str = ""
    """Weights to begin with: coco or imagenet (torchvision's detector or classifier, downloaded), a file of a state
    dict of either, or a run's folder."""
    scales: tuple[float, float, float, float, float] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Side in pixels of the square anchor of each level of the pyramid; it comes in the shapes 2:1, 1:1 and 1:2."""

    def network(self, classes: int) -> "Network":
        """The network; its batch normalisation stays as init has it, and learns where there is none."""
        from fukami.models import faster_rcnn_resnet50_fpn

        return faster_rcnn_resnet50_fpn(classes, pooling=self.pooling, frozen=bool(self.init), scales=self.scales)
