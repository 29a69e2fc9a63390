"""Networks of eight bits: quantised after training, or aware of it while they train, and run by ONNX Runtime.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (CVPR
2018); Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference" (2018). A weight is a whole
number from -127 to 127 times the step of its output channel; an activation is a byte, less the byte that means 0,
times the step of its tensor. Convolutions, affine layers, sums and concatenations are computed on bytes.

There is one way for both: :func:`prepare` puts roundings into the network's graph, calibration or training finds the
ranges of the activations, and :func:`export_int8` writes the same numbers down. Quantising after training is that
without the training. The papers fold the batch normalisation into the weights before they round them; a channel's step
is set by its own largest weight, so that its factor changes the step and not the whole numbers, and here it is folded
last.

torchao's flow (PT2E with the quantizer for x86) was tried first. It cannot prepare the ResNets, whose blocks call one
rectifier twice; it fails under bfloat16's autocast; GoogLeNet would answer with its auxiliary classifiers for ever; and
what it makes has to be compiled on each machine.
"""

import copy
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from onnx import GraphProto, TensorProto
from onnx.numpy_helper import from_array
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.onnx.ops import symbolic

from fukami.errors import Error
from fukami.layers.binary import BinaryConv2d, BinaryLinear, Sign
from fukami.layers.ensemble import Ensemble
from fukami.quantization import onnx_export

MAX_WEIGHT = 127  # the largest; -128 is left out, so that plus and minus have the same steps
MAX_ACTIVATION = 255
MAX_BIAS = 2.0**30  # the largest in steps of the sums, which have 32 bits
RANGE_MOMENTUM = 0.01  # how far a batch moves the ranges in training
MIN_SCALE = 1e-12  # the smallest step
CONV_ARGS = ("stride", "padding", "dilation", "groups")  # of a convolution, as torch calls them

QuantizableLayer = nn.Conv2d | nn.Linear
JOIN_OPS = {operator.add, operator.iadd, torch.add, torch.cat}
# What these give out is what they take in, or 0, which every range has; so it needs no other range.
RANGE_PRESERVING_LAYERS = (nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.Identity)
RANGE_PRESERVING_OPS = {
    F.relu,
    torch.relu,
    F.max_pool2d,
    torch.flatten,
    "flatten",
    "view",
    "reshape",
    operator.getitem,
    F.pad,
}


def quantize(
    network: nn.Module, shape: tuple[int, int, int], images: Iterable[Tensor], metadata: dict[str, str]
) -> bytes:
    """The network in int8, quantised after its training, as ONNX for
    :class:`fukami.quantization.onnx_export.OnnxNetwork`.

    Args:
        network: stays as it is.
        shape: ``(C, H, W)`` of an image.
        images: normalised batches ``(N, C, H, W)``, some hundreds of images such as those it was trained on; the
            ranges of the activations are taken from them.
        metadata: what the file says of itself.

    Raises:
        Error: there are no images, or a layer cannot be quantised or exported; the message names it and says why.
    """
    prepared = prepare(network)
    calibrate(prepared, images)
    return export_int8(prepared, shape, metadata)


def prepare(network: nn.Module) -> nn.Module:
    """A copy that rounds weights and activations as int8 will, to train or to calibrate.

    Gradients pass the rounding unchanged (straight through), except beyond the range of an activation. In training the
    ranges follow the least and the greatest value of each batch. The parameters have the names that the network's have;
    buffers ``ranges.*`` are added. It answers with scores alone: auxiliary classifiers are left out.

    Raises:
        Error: a layer cannot be quantised; the message names it and says why.
    """
    network = copy.deepcopy(network)
    if isinstance(network, Ensemble):
        network.models = nn.ModuleList(prepare(member) for member in network.models)
        return network
    for name, module in network.named_modules():
        if isinstance(module, BinaryConv2d | BinaryLinear | Sign):
            raise Error(
                f"{name} ({type(module).__name__}) has one bit and would gain nothing from int8: export the run as "
                "binary, or as onnx"
            )
    prepared = _trace_model(network)
    _swap_pool_and_relu(prepared.graph)
    for node in list(prepared.graph.nodes):
        layer = _get_quantizable_layer(node)
        if layer is not None:
            prepared.set_submodule(str(node.target), _create_fake_quant_layer(layer))
        if _is_quantized(node):
            _insert_after(_get_fused_end(node), f"ranges.{node.name}", FakeQuantActivation())
    prepared.recompile()
    return prepared.to(next(prepared.parameters()).device).train()


@torch.no_grad()
def calibrate(prepared: nn.Module, images: Iterable[Tensor]) -> None:
    """Set the ranges of the activations to those that normalised batches ``(N, C, H, W)`` have without rounding.

    Raises:
        Error: there are no images.
    """
    roundings = [module for module in prepared.modules() if isinstance(module, FakeQuantActivation)]
    mode = prepared.training
    prepared.eval()
    for rounding in roundings:
        rounding.calibrating = True
    count = sum(len(prepared(batch)) for batch in images)
    for rounding in roundings:
        rounding.calibrating = False
    prepared.train(mode)
    if not count:
        raise Error("there is no image to calibrate int8 with; give a few hundred such as the run was trained on")


def export_int8(network: nn.Module, shape: tuple[int, int, int], metadata: dict[str, str]) -> bytes:
    """What :func:`prepare` made, trained or calibrated, as an int8 ONNX file that answers as it does in evaluation.

    Raises:
        Error: it has seen no image, so that no range is known, or a layer cannot be exported.
    """
    network = onnx_export.copy_for_export(network)
    for module in list(network.modules()):
        if isinstance(module, fx.GraphModule):
            _lower_to_onnx(module)
    model = onnx_export.export_model_proto(network, shape)
    _add_zero_points(model.graph)
    return onnx_export.serialize_model(model, metadata)


def _add_zero_points(graph: GraphProto) -> None:
    """Say that 0 means 0 in each tensor of weights: where ONNX Runtime rewrites them (no VNNI), it needs it said."""
    constants = {constant.name: constant for constant in graph.initializer}
    for node in graph.node:
        weight = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is not None and weight.data_type == TensorProto.INT8:
            name = f"{weight.name}_zero"
            graph.initializer.append(from_array(np.zeros(weight.dims[0], np.int8), name))
            node.input.append(name)


class FakeQuantConv2d(nn.Conv2d):
    """A convolution whose weights are rounded as int8 will have them."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv2d``."""
        return self._conv_forward(input.to(self.weight.dtype), fake_quantize_weight(self.weight), self.bias)  # type: ignore[no-any-return]


class FakeQuantLinear(nn.Linear):
    """An affine layer whose weights are rounded as int8 will have them."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Linear``."""
        return F.linear(input.to(self.weight.dtype), fake_quantize_weight(self.weight), self.bias)


class FakeQuantActivation(nn.Module):
    """An activation rounded to one of 256 evenly spaced values of which 0 is one; what lies beyond is clipped."""

    range: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("range", torch.zeros(2))  # the least and the greatest value; both 0: not yet known
        self.calibrating = False

    def forward(self, x: Tensor) -> Tensor:
        """Float32 of the shape of ``x``."""
        x = x.float()
        if self.training or self.calibrating:
            self._update_range(x.detach())
        if self.calibrating or not (self.training or self.range.any()):
            return x
        step, zero = self.compute_qparams()
        result: Tensor = torch.fake_quantize_per_tensor_affine(x, step, zero, 0, MAX_ACTIVATION)
        return result

    def compute_qparams(self) -> tuple[Tensor, Tensor]:
        """The step between two values, and the byte that means 0."""
        low, high = self.range
        step = ((high - low) / MAX_ACTIVATION).clamp(min=MIN_SCALE)
        return step, (-low / step).round().int()

    def _update_range(self, x: Tensor) -> None:
        low, high = torch.aminmax(x)
        seen = torch.stack((low.clamp(max=0), high.clamp(min=0)))
        if self.calibrating:
            seen = torch.stack((torch.minimum(self.range[0], seen[0]), torch.maximum(self.range[1], seen[1])))
        else:
            seen = torch.where(self.range.any(), self.range.lerp(seen, RANGE_MOMENTUM), seen)
        self.range.copy_(seen)


def fake_quantize_weight(weight: Tensor) -> Tensor:
    """The weight ``(outputs, ...)`` as int8 will have it; the gradient passes unchanged."""
    step = compute_weight_scales(weight)
    return weight + ((weight / step).round() * step - weight).detach()


def compute_weight_scales(weight: Tensor) -> Tensor:
    """The step of each output's weights ``(outputs, ...)``, of the shape ``(outputs, 1, ...)``."""
    return (weight.detach().abs().amax(list(range(1, weight.ndim)), keepdim=True) / MAX_WEIGHT).clamp(min=MIN_SCALE)


class QuantizedActivation(nn.Module):
    """Rounds to bytes and back, in ONNX's words; exists to be exported."""

    step: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor) -> None:
        super().__init__()
        self.register_buffer("step", scale)
        self.register_buffer("zero", zero_point.to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Float32 of the shape of ``x``."""
        parts = symbolic("QuantizeLinear", (x, self.step, self.zero), dtype=torch.uint8, shape=x.shape)
        return symbolic("DequantizeLinear", (parts, self.step, self.zero), dtype=torch.float32, shape=x.shape)


class QuantizedLayer(nn.Module):
    """A convolution or an affine layer of whole numbers, in ONNX's words; exists to be exported.

    Args:
        layer: the layer, with the batch normalisation folded in.
        input_scale: of its input.
    """

    weight: Tensor
    weight_step: Tensor
    bias: Tensor
    bias_step: Tensor

    def __init__(self, layer: QuantizableLayer, input_scale: Tensor) -> None:
        super().__init__()
        weight = layer.weight.detach()
        bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach()
        own = compute_weight_scales(weight).flatten()
        own = torch.maximum(own, bias.abs() / (MAX_BIAS * input_scale))  # a channel of hardly more than a bias
        shape = (-1, *[1] * (weight.ndim - 1))
        self.register_buffer("weight", (weight / own.view(shape)).round().to(torch.int8).contiguous())
        self.register_buffer("weight_step", own)
        self.register_buffer("bias", (bias / (own * input_scale)).round().to(torch.int32))
        self.register_buffer("bias_step", own * input_scale)
        self.place = {name: getattr(layer, name) for name in CONV_ARGS} if isinstance(layer, nn.Conv2d) else None

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        weight, bias = _dequantize(self.weight, self.weight_step), _dequantize(self.bias, self.bias_step)
        return F.linear(x, weight, bias) if self.place is None else F.conv2d(x, weight, bias, **self.place)


def _dequantize(whole: Tensor, step: Tensor) -> Tensor:
    """Whole numbers ``(outputs, ...)`` times the steps ``(outputs,)``, which the file keeps apart."""
    return symbolic("DequantizeLinear", (whole, step), {"axis": 0}, dtype=torch.float32, shape=whole.shape)


class _Tracer(fx.Tracer):
    """Follows a network down to torch's own layers, and knows where it is."""

    module_path: tuple[str, ...] = ()

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        before = self.module_path
        self.module_path = (*before, self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.module_path = before
        return result


def _trace_model(network: nn.Module) -> fx.GraphModule:
    """The operations of the network, as it answers in evaluation."""
    tracer = _Tracer()
    try:
        return fx.GraphModule(network, tracer.trace(network.eval()))
    except Exception as error:  # whatever a layer raises of a tensor that has no values
        name = tracer.module_path[-1] if tracer.module_path else ""
        layer = type(network.get_submodule(name)).__name__
        raise Error(f"{name or 'the network'} ({layer}) cannot be quantised: {error}") from error


def _get_module(node: fx.Node) -> nn.Module | None:
    """The layer that a node calls, if it calls one."""
    owner = node.graph.owning_module
    return owner.get_submodule(str(node.target)) if owner is not None and node.op == "call_module" else None


def _get_quantizable_layer(node: fx.Node) -> QuantizableLayer | None:
    """The convolution or affine layer that a node calls, if it calls one; ONNX pads with nothing but zeros."""
    module = _get_module(node)
    padded = isinstance(module, nn.Conv2d) and module.padding_mode != "zeros"
    return module if isinstance(module, QuantizableLayer) and not padded else None


def _is_relu(node: fx.Node) -> bool:
    return isinstance(_get_module(node), nn.ReLU) or node.target in (F.relu, torch.relu)


def _preserves_range(node: fx.Node) -> bool:
    """Whether what the node gives out has the range of its first input (which an element of a tuple has not)."""
    if node.target is operator.getitem and not isinstance(node.args[1], tuple):
        return False
    return isinstance(_get_module(node), RANGE_PRESERVING_LAYERS) or node.target in RANGE_PRESERVING_OPS


def _runs_in_int8(node: fx.Node) -> bool:
    """Whether the node is computed on bytes."""
    return _get_quantizable_layer(node) is not None or node.target in JOIN_OPS


def _get_only_user(node: fx.Node) -> fx.Node:
    """The one node that uses this one; where there are several, the node itself."""
    return next(iter(node.users)) if len(node.users) == 1 else node


def _find_readers(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that use this one's values, directly or carried."""
    for user in node.users:
        if not _preserves_range(user):
            yield user
        elif user.args[0] is node:
            yield from _find_readers(user)


def _is_quantized(node: fx.Node) -> bool:
    """Whether bytes are made of the node's values: those that are computed of bytes or read as such; not of scores."""
    if _preserves_range(node) or _get_foldable_norm(_get_input_node(node)) is node:
        return False
    readers = [reader for reader in _find_readers(_get_fused_end(node)) if reader.op != "output"]
    return any(map(_runs_in_int8, readers)) or (_runs_in_int8(node) and bool(readers))


def _get_input_node(node: fx.Node) -> fx.Node:
    first = node.args[0] if node.args else node
    return first if isinstance(first, fx.Node) else node


def _get_foldable_norm(node: fx.Node) -> fx.Node | None:
    """The batch normalisation that can be folded into the layer of this node, if there is one."""
    user = _get_only_user(node)
    return (
        user
        if _get_quantizable_layer(node) and isinstance(_get_module(user), nn.BatchNorm1d | nn.BatchNorm2d)
        else None
    )


def _get_fused_end(node: fx.Node) -> fx.Node:
    """The last of what is computed along with the node: its batch normalisation, its rectifier."""
    node = _get_foldable_norm(node) or node
    return user if _is_relu(user := _get_only_user(node)) else node


def _swap_pool_and_relu(graph: fx.Graph) -> None:
    """Exchange a maximum pooling and the rectifier after it: the result is the same, and the pooling is of bytes."""
    for pool in list(graph.nodes):
        before, relu = _get_input_node(pool), _get_only_user(pool)
        if isinstance(_get_module(pool), nn.MaxPool2d) and _is_relu(relu) and _get_only_user(before) is pool:
            relu.replace_all_uses_with(pool)
            relu.replace_input_with(pool, before)
            pool.replace_input_with(before, relu)
            pool.prepend(relu)


def _insert_after(node: fx.Node, name: str, module: nn.Module) -> None:
    """Pass what the node gives out through the module."""
    assert node.graph.owning_module is not None
    node.graph.owning_module.add_submodule(name, module)
    with node.graph.inserting_after(node):
        inserted = node.graph.call_module(name, (node,))
    node.replace_all_uses_with(inserted, lambda user: user is not inserted)


def _create_fake_quant_layer(layer: QuantizableLayer) -> FakeQuantConv2d | FakeQuantLinear:
    """The layer with rounded weights; the parameters are the same."""
    made: FakeQuantConv2d | FakeQuantLinear
    if isinstance(layer, nn.Conv2d):
        place: dict[str, Any] = {name: getattr(layer, name) for name in CONV_ARGS}
        made = FakeQuantConv2d(layer.in_channels, layer.out_channels, layer.kernel_size, device="meta", **place)  # type: ignore[arg-type]
    else:
        made = FakeQuantLinear(layer.in_features, layer.out_features, device="meta")
    made.weight, made.bias = layer.weight, layer.bias
    return made


def _lower_to_onnx(prepared: fx.GraphModule) -> None:
    """Put ONNX's words in the place of the roundings."""
    graph = prepared.graph
    for node in list(graph.nodes):
        module, layer, norm = _get_module(node), _get_quantizable_layer(node), _get_foldable_norm(node)
        if isinstance(module, FakeQuantActivation):
            if not module.range.any():
                raise Error("the network has seen no image, so its ranges are not known: train or calibrate it first")
            prepared.set_submodule(str(node.target), QuantizedActivation(*module.compute_qparams()))
        elif layer is not None:
            if norm is not None:
                layer = _fold_batch_norm(layer, _get_module(norm))
                norm.replace_all_uses_with(node)
                graph.erase_node(norm)
            name = f"layers.{node.name}"
            prepared.add_submodule(name, QuantizedLayer(layer, _find_source_activation(_get_input_node(node)).step))
            node.target = name
    prepared.recompile()


def _fold_batch_norm(layer: QuantizableLayer, norm: Any) -> QuantizableLayer:
    """The layer and the batch normalisation after it as one layer."""
    return fuse_conv_bn_eval(layer, norm) if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval(layer, norm)


def _find_source_activation(node: fx.Node) -> QuantizedActivation:
    """The rounding that a node's values have gone through."""
    while not isinstance(module := _get_module(node), QuantizedActivation):
        node = _get_input_node(node)
    return module
