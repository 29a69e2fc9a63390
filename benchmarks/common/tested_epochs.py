"""DeepConvNet that is evaluated on the test images after each epoch, to measure the time to an accuracy.

fukami train benchmarks/common/tested_epochs.py --data mnist
"""

from dataclasses import dataclass, replace

from fukami.classification.deep_convnet import DeepConvNet


@dataclass(frozen=True, kw_only=True)
class TestedEpochs(DeepConvNet):
    """DeepConvNet whose validation images are the test images, if the dataset has no others."""

    __test__ = False  # no test of pytest

    def load_data(self):
        """Load the data of DeepConvNet."""
        data = super().load_data()
        return data if data.val else replace(data, val=data.test)
