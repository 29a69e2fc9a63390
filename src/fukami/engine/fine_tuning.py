"""Fine-tuning: frozen layers, and learning rates by layer."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fukami.layers.segmentation_model import SegmentationModel

ParameterGroup = dict[str, list[nn.Parameter] | float]  # params and lr, for an optimizer


def find_head(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a classifier's head: the child with the last linear layer, and auxiliary classifiers.

    The head includes the normalization of the scores after that layer. All other children are the features.
    """
    auxiliary = tuple(name for name, _ in model.named_children() if name.startswith("aux"))
    linear = {name.partition(".")[0]: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    last = [child for child in linear if child not in auxiliary][-1]
    children = [
        name
        for name, child in model.named_children()
        if name == last or (isinstance(child, _BatchNorm) and child.num_features == linear[last].out_features)
    ]
    return *children[children.index(last) :], *auxiliary


def freeze_features(model: nn.Module) -> None:
    """Freeze everything but the head; with a head of one layer, this trains a linear probe."""
    head = find_head(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.partition(".")[0] in head


def build_layerwise_groups(model: nn.Module, lr: float, decay: float) -> list[ParameterGroup]:
    """Build parameter groups with layer-wise learning-rate decay: ``lr`` for the head, times ``decay`` per stage below.

    Discriminative fine-tuning (Howard and Ruder 2018, section 3.2). A stage is a child of the network, or in a chain of
    layers those up to a pooling layer. Batch normalization belongs to the convolution before it.
    """
    head, previous_child, is_pooled = find_head(model), "", False
    stages: list[list[nn.Parameter]] = []
    head_parameters: list[nn.Parameter] = []
    for name, module in model.named_modules():
        child, parameters = name.partition(".")[0], list(module.parameters(recurse=False))
        is_pooled |= isinstance(module, nn.MaxPool2d) and module.stride != 1
        if not parameters:
            continue
        if child in head:
            head_parameters += parameters
        elif stages and (isinstance(module, _BatchNorm) or (child == previous_child and not is_pooled)):
            stages[-1] += parameters
        else:
            stages.append(parameters)
        previous_child, is_pooled = child, False
    return [
        {"params": stage, "lr": lr * decay**depth} for depth, stage in enumerate([head_parameters, *reversed(stages)])
    ]


def freeze_stages(backbone: nn.Module, num_stages: int) -> None:
    """Freeze the first ``num_stages`` stages of a chain of layers.

    A stage starts at each max-pooling layer and each ``nn.Sequential``.
    """
    layers = list(backbone.children())
    while len(layers) == 1:
        layers = list(layers[0].children())
    stage, is_empty = 0, True
    for layer in layers:
        if not is_empty and isinstance(layer, nn.MaxPool2d | nn.Sequential):
            stage, is_empty = stage + 1, True
        for parameter in layer.parameters():
            parameter.requires_grad &= stage >= num_stages
            is_empty = False


def build_backbone_groups(model: SegmentationModel, lr: float, backbone_lr_factor: float) -> list[ParameterGroup]:
    """Build the parameter groups of a segmentation network: ``lr``, and ``backbone_lr_factor * lr`` for the backbone.

    Args:
        model: the network.
        lr: learning rate of the other layers.
        backbone_lr_factor: factor of the learning rate of the pretrained backbone.
    """
    backbone: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (backbone if name.startswith(f"{model.backbone_prefix}.") else others).append(parameter)
    return [{"params": others, "lr": lr}, {"params": backbone, "lr": backbone_lr_factor * lr}]
