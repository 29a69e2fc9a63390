"""DeepConvNet that also drops out its ten scores in training, as the note's network does; to see what that costs.

fukami train benchmarks/common/dropped_scores.py --data mnist
"""

from dataclasses import dataclass

from torch import nn

from fukami.classification.deep_convnet import DeepConvNet


@dataclass(frozen=True, kw_only=True)
class DroppedScores(DeepConvNet):
    """DeepConvNet with dropout after the last affine layer, too (the note's `affine - dropout - softmax`)."""

    def build_task(self, labels):
        """The task of DeepConvNet, its network longer by one layer."""
        task = super().build_task(labels)
        task.model.append(nn.Dropout(self.dropout))
        return task
