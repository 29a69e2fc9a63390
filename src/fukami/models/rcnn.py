"""R-CNN: a classifier's network on regions warped to its size, with a linear machine and a box of each class on top.

Girshick, Donahue, Darrell and Malik, "Rich feature hierarchies for accurate object detection and semantic
segmentation", CVPR 2014.

    warped region → convolutions → pool5 ─┬→ affine → affine = fc7 ─┬→ affine: classes and background (fine-tuning)
                                          │                         └→ affine: a linear SVM of each class
                                          └→ affine: a box of each class

The classifier keeps its own names, so that whatever loads into it loads here; its last layer is the one of the
fine-tuning, "a randomly initialized (N + 1)-way classification layer" (section 2.3). The machines and the boxes are not
learned by gradients: they are solved, and put here.
"""

from collections import OrderedDict

from torch import Tensor, nn

from fukami.models import vgg
from fukami.models.alexnet import build_alexnet_classifier, build_alexnet_features, compute_feature_size


def rcnn_alexnet(
    num_classes: int = 20,
    *,
    size: int = 227,
    hidden: int = 4096,
    dropout: float = 0.5,
    width_multiplier: float = 1.0,
    batch_norm: bool = False,
) -> "RCNN":
    """R-CNN on AlexNet, the paper's T-Net in the form of one column.

    Args:
        num_classes: without the background.
        size: side of a warped region in pixels, at least 63.
        hidden: units of the two affine layers.
        dropout: share of them dropped in training.
        width_multiplier: share of the convolutions' channels.
        batch_norm: after every convolution.
    """
    side, channels = compute_feature_size(size), round(256 * width_multiplier)
    network = OrderedDict(
        features=build_alexnet_features(3, batch_norm, width_multiplier),
        avgpool=nn.AdaptiveAvgPool2d(side),
        flatten=nn.Flatten(),
        classifier=build_alexnet_classifier(channels * side * side, hidden, num_classes + 1, dropout),
    )
    return RCNN(nn.Sequential(network), num_classes)


def rcnn_vgg16(
    num_classes: int = 20,
    *,
    size: int = 224,
    hidden: int = 4096,
    dropout: float = 0.5,
    width_multiplier: float = 1.0,
    batch_norm: bool = False,
) -> "RCNN":
    """R-CNN on VGG-16, O-Net in the paper's later version. The arguments are ``rcnn_alexnet``'s; ``size`` from 32."""
    if size < 32:
        raise ValueError(f"VGG pools five times and needs regions of at least 32×32, not {size}×{size}: enlarge them")
    side, channels = min(7, size // 32), round(512 * width_multiplier)
    network = OrderedDict(
        features=vgg.build_vgg_features("D", 3, batch_norm, width_multiplier),
        avgpool=nn.AdaptiveAvgPool2d(side),
        flatten=nn.Flatten(),
        classifier=vgg.build_vgg_classifier(channels * side * side, hidden, num_classes + 1, dropout),
    )
    return RCNN(nn.Sequential(network), num_classes)


class RCNN(nn.Module):
    """The network, the machines and the boxes.

    Args:
        network: parts ``features``, ``avgpool``, ``flatten`` and ``classifier``, for ``classes + 1`` scores, the
            background's first.
        num_classes: without the background.
    """

    def __init__(self, network: nn.Sequential, num_classes: int) -> None:
        super().__init__()
        self.network = network
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        layers = [layer for layer in network.classifier if isinstance(layer, nn.Linear)]  # type: ignore[union-attr]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.01 if layer is layers[-1] else (2 / layer.in_features) ** 0.5)
            nn.init.zeros_(layer.bias)
        self.svm = _build_frozen_linear(layers[-1].in_features, num_classes)
        self.bbox = _build_frozen_linear(layers[0].in_features, 4 * num_classes)

    def forward(self, regions: Tensor) -> Tensor:
        """Scores ``(K, classes + 1)`` of warped regions ``(K, 3, size, size)``, the background's first."""
        return self.network(regions)  # type: ignore[no-any-return]

    def pool5(self, regions: Tensor) -> Tensor:
        """What the last pooling leaves of warped regions, ``(K, channels × positions)``."""
        x = self.network.features(regions)  # type: ignore[operator]
        return self.network.flatten(self.network.avgpool(x))  # type: ignore[no-any-return, operator]

    def fc7(self, regions: Tensor) -> Tensor:
        """The features of warped regions, ``(K, hidden)``."""
        return self.network.classifier[:-1](self.pool5(regions))  # type: ignore[no-any-return, operator, index]

    def compute_scores(self, fc7: Tensor) -> Tensor:
        """The fine-tuned scores of features, ``(K, classes + 1)``."""
        return self.network.classifier[-1](fc7)  # type: ignore[no-any-return, operator, index]


def _build_frozen_linear(inputs: int, outputs: int) -> nn.Linear:
    """An affine layer of zeros that no gradient changes."""
    layer = nn.Linear(inputs, outputs)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
        parameter.requires_grad = False
    return layer
