"""R-CNN, stage 2: a linear SVM of each class on the fine-tuned features."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fukami.recipe import within
from fukami.region_cnn import Later

if TYPE_CHECKING:
    from fukami.tasks.region_cnn import RegionCNN as Regional


@dataclass(frozen=True, kw_only=True)
class RCNNSVM(Later):
    """R-CNN's second stage (Girshick et al. 2014): linear SVMs with mined negatives, on a run of rcnn-finetune."""

    published: ClassVar[str] = "54.2 % mAP VOC 2007"
    follows: ClassVar[str] = "rcnn-finetune"

    init: str = ""
    """The folder of a finished run of rcnn-finetune."""
    svm_cost: float = 1e-3
    """C of the SVMs, for features of norm 20; positives count twice."""
    svm_overlap: float = 0.3
    """IoU with the objects of a class below which a region is its negative."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        within(self, 1e-12, math.inf, "svm_cost")
        within(self, 0.01, 1, "svm_overlap")

    def task(self, labels: tuple[str, ...]) -> "Regional":
        """A detector of ``labels``."""
        from fukami.tasks.machines import Machines

        return Machines(self.network(len(labels)), labels, self.prepare(), self.looking(),
                        cost=self.svm_cost, overlap=self.svm_overlap, seed=self.seed)  # fmt: skip
