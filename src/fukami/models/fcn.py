"""FCN: a classifier whose affine layers are convolutions says what is at every place of the image.

Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015. On VGG-16 (figure 3):

    image → conv1, conv2, conv3 → pool3 → conv4 → pool4 → conv5 → pool5 → 7×7, 4096 → 1×1, 4096 → 1×1, classes
                                      │                │                                        ┌──────┘
                                      │                │                                        ├→ ×32:  FCN-32s
                                      │                └────────→ 1×1, classes ─────────→ + ← ×2
                                      │                                                   ├→ ×16:        FCN-16s
                                      └─────────→ 1×1, classes ────────→ + ← ×2 ──────────┘
                                                                         └→ ×8:                          FCN-8s

Enlarging is a transposed convolution that begins as bilinear interpolation; the scores of pool4 and pool3 begin at
zero, so that a finer network begins with the answers of the coarser one (section 4.2). The names of the convolutions
are torchvision's. On ResNet, as torchvision's ``fcn_resnet50``: layer3 and layer4 see with dilated filters instead of
halving their maps (Chen et al. 2017), and the scores of an eighth of the side are interpolated.
"""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from fukami.layers.upsample import BilinearConvTranspose2d, apply_with_padding, interpolate_bilinear
from fukami.models.resnet import resnet50, resnet101
from fukami.models.vgg import build_vgg_features, renumber_conv_weights

SIZE_DIVISOR = 32  # pixels that one place of the deepest maps stands for


def fcn32s_vgg16(
    num_classes: int = 21,
    *,
    hidden: int = 4096,
    dropout: float = 0.5,
    width_multiplier: float = 1.0,
    batch_norm: bool = False,
) -> "FCNVGG":
    """FCN-32s: ``(N, 3, H, W)`` to scores ``(N, classes, H, W)``. H and W: any.

    Args:
        num_classes: number of scores at a pixel; 21 are those of Pascal VOC with the background.
        hidden: channels of the two convolutions that were affine layers.
        dropout: share of them that training drops.
        width_multiplier: share of the paper's channels in the convolutions before.
        batch_norm: after every convolution but the last, which the paper had not yet.
    """
    return FCNVGG(num_classes, 32, hidden, dropout, width_multiplier, batch_norm)


def fcn16s_vgg16(
    num_classes: int = 21,
    *,
    hidden: int = 4096,
    dropout: float = 0.5,
    width_multiplier: float = 1.0,
    batch_norm: bool = False,
) -> "FCNVGG":
    """FCN-16s, which adds the scores of pool4. The arguments are ``fcn32s_vgg16``'s."""
    return FCNVGG(num_classes, 16, hidden, dropout, width_multiplier, batch_norm)


def fcn8s_vgg16(
    num_classes: int = 21,
    *,
    hidden: int = 4096,
    dropout: float = 0.5,
    width_multiplier: float = 1.0,
    batch_norm: bool = False,
) -> "FCNVGG":
    """FCN-8s, which adds the scores of pool4 and pool3. The arguments are ``fcn32s_vgg16``'s."""
    return FCNVGG(num_classes, 8, hidden, dropout, width_multiplier, batch_norm)


def fcn_resnet50(num_classes: int = 21, *, aux_loss: bool = True) -> "FCNResNet":
    """FCN on a dilated ResNet-50: ``(N, 3, H, W)`` to scores ``(N, classes, H, W)``. H and W: any.

    In training with ``aux_loss`` a second answer comes from layer3: ``(scores, scores)``.

    Args:
        num_classes: number of scores at a pixel; 21 are those of Pascal VOC with the background.
        aux_loss: whether there is the second answer.
    """
    return FCNResNet(resnet50(), num_classes, aux_loss)


def fcn_resnet101(num_classes: int = 21, *, aux_loss: bool = True) -> "FCNResNet":
    """FCN on a dilated ResNet-101. The arguments are ``fcn_resnet50``'s."""
    return FCNResNet(resnet101(), num_classes, aux_loss)


class FCNVGG(nn.Module):
    """Scores of VGG-16's maps, enlarged ``stride`` times to the image (section 4)."""

    backbone_prefix = "features"  # the layers of the classifier
    class_prefixes = ("head.score.", "score4.", "score3.", "twice4.", "twice3.", "enlarge.")  # those of the classes

    def __init__(
        self,
        num_classes: int,
        stride: int,
        hidden: int,
        dropout: float,
        width_multiplier: float,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.features = build_vgg_features("D", batch_norm=batch_norm, width_multiplier=width_multiplier)
        c3, c4, c5 = (round(width_multiplier * channels) for channels in (256, 512, 512))
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, inputs, side in ((6, c5, 7), (7, hidden, 1)):  # N × hidden × H/32 × W/32
            layers[f"fc{number}"] = nn.Conv2d(inputs, hidden, side, padding=side // 2)
            if batch_norm:
                layers[f"norm{number}"] = nn.BatchNorm2d(hidden)
            layers |= {f"relu{number}": nn.ReLU(inplace=True), f"drop{number}": nn.Dropout(dropout)}
        layers["score"] = nn.Conv2d(hidden, num_classes, 1)  # N × classes × H/32 × W/32
        self.head = nn.Sequential(layers)
        for name in ("fc6", "fc7"):
            layer = self.head.get_submodule(name)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.score4 = _build_zero_conv(c4, num_classes) if stride < 32 else None
        self.twice4 = BilinearConvTranspose2d(num_classes, 2) if stride < 32 else None
        self.score3 = _build_zero_conv(c3, num_classes) if stride < 16 else None
        self.twice3 = BilinearConvTranspose2d(num_classes, 2) if stride < 16 else None
        self.enlarge = BilinearConvTranspose2d(num_classes, stride)
        pool3, pool4 = [n for n, layer in enumerate(self.features, 1) if isinstance(layer, nn.MaxPool2d)][2:4]
        # in a list, since their layers are the network's already
        self.stages = [self.features[:pool3], self.features[pool3:pool4], self.features[pool4:], self.head]

    def forward(self, images: Tensor) -> Any:
        """Normalised ``(N, 3, H, W)`` to scores ``(N, classes, H, W)``."""
        return apply_with_padding(self.compute_scores, images, SIZE_DIVISOR)

    def compute_scores(self, images: Tensor) -> Tensor:
        """The same where H and W are multiples of 32."""
        third, fourth, fifth, head = self.stages
        pool3 = third(images)  # N × 256 × H/8 × W/8
        pool4 = fourth(pool3)  # N × 512 × H/16 × W/16
        scores = head(fifth(pool4))  # N × classes × H/32 × W/32
        if self.score4 is not None and self.twice4 is not None:
            scores = self.twice4(scores) + self.score4(pool4)
        if self.score3 is not None and self.twice3 is not None:
            scores = self.twice3(scores) + self.score3(pool3)
        return self.enlarge(scores)  # type: ignore[no-any-return]

    def get_traceable_module(self) -> nn.Module:
        """The layers without what fits other sizes to them."""
        return TraceableFCN(self)

    def list_backbone_layers(self) -> list[nn.Module]:
        """The layers of the classifier, one after another."""
        return [*self.features, *list(self.head)[:-1]]

    def convert_classifier_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a classifier's tensors, those that fit here: its affine layers as convolutions (figure 2)."""
        found = renumber_conv_weights(tensors, self.features)
        for old, new in (("classifier.0", "head.fc6"), ("classifier.3", "head.fc7")):
            weight, expected = tensors.get(f"{old}.weight"), self.get_parameter(f"{new}.weight")
            if weight is not None and weight.numel() == expected.numel():
                found[f"{new}.weight"] = weight.view_as(expected)
                found[f"{new}.bias"] = tensors[f"{old}.bias"]
        return found


class FCNResNet(nn.Module):
    """Scores of a dilated ResNet's maps, interpolated to the image, as torchvision has it."""

    backbone_prefix = "backbone"
    class_prefixes = ("classifier.4.", "aux_classifier.4.")

    def __init__(self, resnet: nn.Sequential, num_classes: int, aux_loss: bool) -> None:
        super().__init__()
        layers = OrderedDict(list(resnet.named_children())[:-3])  # without pooling, flattening and affine layer
        dilate(layers["layer3"], 1, 2)
        dilate(layers["layer4"], 2, 4)
        self.backbone = nn.Sequential(layers)
        self.classifier = _build_fcn_head(2048, num_classes)
        self.aux_classifier = _build_fcn_head(1024, num_classes) if aux_loss else None

    def forward(self, images: Tensor) -> Any:
        """Normalised ``(N, 3, H, W)`` to scores ``(N, classes, H, W)``, in training perhaps a pair of them."""
        height, width = images.shape[-2:]
        third = self.backbone[:-1](images)  # N × 1024 × H/8 × W/8
        scores = self.classifier(self.backbone[-1](third))  # from N × 2048 × H/8 × W/8
        scores = interpolate_bilinear(scores, height, width)
        if self.training and self.aux_classifier is not None:
            return scores, interpolate_bilinear(self.aux_classifier(third), height, width)
        return scores

    def get_traceable_module(self) -> nn.Module:
        """The layers without what fits other sizes to them."""
        return nn.Sequential(OrderedDict(backbone=self.backbone, classifier=self.classifier))

    def convert_classifier_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a classifier's tensors, those that fit here."""
        return {f"backbone.{key}": value for key, value in tensors.items() if not key.startswith("fc.")}


class TraceableFCN(nn.Module):
    """The scores of an :class:`FCNVGG`, whose stages are modules of their own here."""

    def __init__(self, network: FCNVGG) -> None:
        super().__init__()
        for name, child in network.named_children():
            self.add_module(name, child)
        self.stages = nn.ModuleList(network.stages)
        self.compute_scores = network.compute_scores

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, H, W)``."""
        return self.compute_scores(images)


def dilate(stage: nn.Module, first_dilation: int, other_dilation: int) -> None:
    """Let a stage of blocks keep the size of its maps: filters reach as far as if it had halved them.

    ``first_dilation`` and ``other_dilation`` are the dilations of the 3×3 convolutions in its first block and in the
    others.
    """
    for name, layer in stage.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
            if layer.kernel_size == (3, 3):
                apart = first_dilation if name.startswith("0.") else other_dilation
                layer.dilation, layer.padding = (apart, apart), (apart, apart)


def _build_zero_conv(inputs: int, classes: int) -> nn.Conv2d:
    """Scores that are 0 at first."""
    layer = nn.Conv2d(inputs, classes, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _build_fcn_head(inputs: int, classes: int) -> nn.Sequential:
    """torchvision's ``FCNHead``."""
    middle = inputs // 4
    return nn.Sequential(
        nn.Conv2d(inputs, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Conv2d(middle, classes, 1),
    )
