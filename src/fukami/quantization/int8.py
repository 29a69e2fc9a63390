"""8-bit quantization: post-training quantization and quantization-aware training, for ONNX Runtime.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (CVPR
2018); Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference" (2018). A weight is an integer
from -127 to 127 times the scale of its output channel. An activation is an unsigned 8-bit integer minus the zero
point, times the scale of its tensor. Convolutions, fully connected layers, sums and concatenations are computed in
int8.

Both methods share three steps: :func:`prepare_fake_quantization` inserts fake quantization into the network's graph,
calibration or training determines the activation ranges, and :func:`export_int8` exports the same numbers. Unlike in
the papers, batch normalization is folded into the weights after rounding. The result is equal, because the largest
weight of a channel sets its scale: the factor of the normalization changes the scale, not the integers.

torchao (PT2E with the x86 quantizer) has several limits. It cannot prepare the ResNets, whose blocks call one ReLU
twice; it fails under bfloat16 autocast; GoogLeNet would keep its auxiliary classifiers in inference; and its result has
to be compiled on each machine.
"""

import copy
import operator
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.onnx.ops import symbolic

from fukami.errors import Error, require_extra
from fukami.layers.binary import BinaryConv2d, BinaryLinear, Sign
from fukami.layers.ensemble import Ensemble
from fukami.progress import track
from fukami.quantization import onnx_export

with require_extra("export", "the precision int8 or onnx"):
    from onnx import GraphProto, TensorProto
    from onnx.numpy_helper import from_array

MAX_WEIGHT = 127  # -128 is not used, for a symmetric range
MAX_ACTIVATION = 255
MAX_BIAS = 2.0**30  # in units of the 32-bit accumulator
RANGE_MOMENTUM = 0.01  # weight of a batch in the moving average of the ranges
MIN_SCALE = 1e-12  # minimum scale
CONV_ARGS = ("stride", "padding", "dilation", "groups")  # arguments of nn.Conv2d

QuantizableLayer = nn.Conv2d | nn.Linear
ADD_AND_CONCAT_OPS = {operator.add, operator.iadd, torch.add, torch.cat}
# Their outputs are input values or 0, which every range contains, so they need no separate range.
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
    """Quantize a trained network to int8 (post-training quantization) and export it as ONNX.

    The result is the file content for :class:`fukami.quantization.onnx_export.OnnxNetwork`.

    Args:
        network: trained network; it is not modified.
        shape: input shape ``(C, H, W)``.
        images: calibration data, normalized batches ``(N, C, H, W)`` of some hundreds of training images, which
            determine the activation ranges.
        metadata: metadata of the file.

    Raises:
        Error: there are no images, or a layer cannot be quantized or exported; the message names the layer and reason.
    """
    prepared = prepare_fake_quantization(network)
    calibrate(prepared, images)
    return export_int8(prepared, shape, metadata)


def prepare_fake_quantization(network: nn.Module) -> nn.Module:
    """Return a copy with fake quantization of weights and activations, for training or calibration.

    Gradients pass the rounding unchanged (straight-through estimator), except outside the range of an activation. In
    training the ranges are moving averages of the minimum and maximum of each batch. Parameter names are unchanged;
    buffers ``ranges.*`` are added. The copy predicts only scores: auxiliary classifiers are removed.

    Raises:
        Error: a layer cannot be quantized; the message names the layer and reason.
    """
    network = copy.deepcopy(network)
    if isinstance(network, Ensemble):
        network.models = nn.ModuleList(prepare_fake_quantization(member) for member in network.models)
        return network
    for name, module in network.named_modules():
        if isinstance(module, BinaryConv2d | BinaryLinear | Sign):
            raise Error(
                f"{name} ({type(module).__name__}) is a 1-bit layer and cannot be quantized to int8; export the run as "
                "binary or onnx"
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
    """Set the activation ranges from normalized batches ``(N, C, H, W)``, computed without rounding.

    Raises:
        Error: there are no images.
    """
    activations = [module for module in prepared.modules() if isinstance(module, FakeQuantActivation)]
    was_training = prepared.training
    prepared.eval()
    for activation in activations:
        activation.calibrating = True
    count = sum(len(prepared(batch)) for batch in track(images, "calibration", unit="batches"))
    for activation in activations:
        activation.calibrating = False
    prepared.train(was_training)
    if not count:
        raise Error("there are no images to calibrate int8; use a few hundred images like the training data")


def export_int8(network: nn.Module, shape: tuple[int, int, int], metadata: dict[str, str]) -> bytes:
    """Export a trained or calibrated network from :func:`prepare_fake_quantization` as an int8 ONNX file.

    Raises:
        Error: the activation ranges are not set, or a layer cannot be exported.
    """
    network = onnx_export.copy_for_export(network)
    for module in list(network.modules()):
        if isinstance(module, fx.GraphModule):
            _lower_to_onnx(module)
    model = onnx_export.export_model_proto(network, shape)
    _add_zero_points(model.graph)
    return onnx_export.serialize_model(model, metadata)


def _add_zero_points(graph: GraphProto) -> None:
    """Add explicit zero points of 0 to the weights, which ONNX Runtime needs to rewrite them without VNNI."""
    constants = {constant.name: constant for constant in graph.initializer}
    for node in graph.node:
        weight = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is not None and weight.data_type == TensorProto.INT8:
            name = f"{weight.name}_zero"
            graph.initializer.append(from_array(np.zeros(weight.dims[0], np.int8), name))
            node.input.append(name)


class FakeQuantConv2d(nn.Conv2d):
    """Convolution with fake-quantized weights."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the convolution, as ``nn.Conv2d``."""
        weight = fake_quantize_weight(self.weight)
        output: Tensor = self._conv_forward(input.to(self.weight.dtype), weight, self.bias)
        return output


class FakeQuantLinear(nn.Linear):
    """Fully connected layer with fake-quantized weights."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, as ``nn.Linear``."""
        return F.linear(input.to(self.weight.dtype), fake_quantize_weight(self.weight), self.bias)


class FakeQuantActivation(nn.Module):
    """Fake quantization of activations to 256 evenly spaced values, including 0; other values are clipped."""

    activation_range: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("activation_range", torch.zeros(2))  # minimum and maximum; both 0: not set
        self.calibrating = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded ``x`` in float32."""
        x = x.float()
        if self.training or self.calibrating:
            self._update_range(x.detach())
        if self.calibrating or not (self.training or self.activation_range.any()):
            return x
        scale, zero_point = self.compute_qparams()
        result: Tensor = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, MAX_ACTIVATION)
        return result

    def compute_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point."""
        low, high = self.activation_range
        scale = ((high - low) / MAX_ACTIVATION).clamp(min=MIN_SCALE)
        return scale, (-low / scale).round().int()

    def _update_range(self, x: Tensor) -> None:
        low, high = torch.aminmax(x)
        if not self.calibrating and dist.is_available() and dist.is_initialized():  # the range of the whole batch
            bounds = torch.stack((-low, high))
            dist.all_reduce(bounds, dist.ReduceOp.MAX)
            low, high = -bounds[0], bounds[1]
        new_range = torch.stack((low.clamp(max=0), high.clamp(min=0)))
        if self.calibrating:
            new_range = torch.stack(
                (
                    torch.minimum(self.activation_range[0], new_range[0]),
                    torch.maximum(self.activation_range[1], new_range[1]),
                )
            )
        else:
            new_range = torch.where(
                self.activation_range.any(), self.activation_range.lerp(new_range, RANGE_MOMENTUM), new_range
            )
        self.activation_range.copy_(new_range)


def fake_quantize_weight(weight: Tensor) -> Tensor:
    """Round a weight ``(outputs, ...)`` to int8 values; the gradient passes unchanged."""
    scale = compute_weight_scales(weight)
    return weight + ((weight / scale).round() * scale - weight).detach()


def compute_weight_scales(weight: Tensor) -> Tensor:
    """Compute the scale of each output of a weight ``(outputs, ...)``, with the shape ``(outputs, 1, ...)``."""
    return (weight.detach().abs().amax(list(range(1, weight.ndim)), keepdim=True) / MAX_WEIGHT).clamp(min=MIN_SCALE)


class QuantizedActivation(nn.Module):
    """ONNX operators QuantizeLinear and DequantizeLinear, for export only."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point.to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded ``x`` in float32."""
        quantized = symbolic("QuantizeLinear", (x, self.scale, self.zero_point), dtype=torch.uint8, shape=x.shape)
        return symbolic(
            "DequantizeLinear", (quantized, self.scale, self.zero_point), dtype=torch.float32, shape=x.shape
        )


class QuantizedLayer(nn.Module):
    """Convolution or fully connected layer with integer weights and DequantizeLinear, for export only.

    Args:
        layer: layer with the batch normalization folded in.
        input_scale: scale of the input.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor
    bias_scale: Tensor

    def __init__(self, layer: QuantizableLayer, input_scale: Tensor) -> None:
        super().__init__()
        weight = layer.weight.detach()
        bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach()
        scale = compute_weight_scales(weight).flatten()
        # for a channel with tiny weights and a large bias
        scale = torch.maximum(scale, bias.abs() / (MAX_BIAS * input_scale))
        shape = (-1, *[1] * (weight.ndim - 1))
        self.register_buffer("weight", (weight / scale.view(shape)).round().to(torch.int8).contiguous())
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", (bias / (scale * input_scale)).round().to(torch.int32))
        self.register_buffer("bias_scale", scale * input_scale)
        self.conv_kwargs = {name: getattr(layer, name) for name in CONV_ARGS} if isinstance(layer, nn.Conv2d) else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        weight, bias = _dequantize(self.weight, self.weight_scale), _dequantize(self.bias, self.bias_scale)
        return F.linear(x, weight, bias) if self.conv_kwargs is None else F.conv2d(x, weight, bias, **self.conv_kwargs)


def _dequantize(values: Tensor, scale: Tensor) -> Tensor:
    """Multiply integers ``(outputs, ...)`` by their scales ``(outputs,)``, stored separately in the file."""
    return symbolic("DequantizeLinear", (values, scale), {"axis": 0}, dtype=torch.float32, shape=values.shape)


class _Tracer(fx.Tracer):
    """Tracer down to torch's own layers that records the current module."""

    module_path: tuple[str, ...] = ()

    def call_module(
        self, m: nn.Module, forward: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        parent_path = self.module_path
        self.module_path = (*parent_path, self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.module_path = parent_path
        return result


def _trace_model(network: nn.Module) -> fx.GraphModule:
    """Trace the operations of a network in evaluation mode."""
    tracer = _Tracer()
    try:
        return fx.GraphModule(network, tracer.trace(network.eval()))
    except Exception as error:  # layers may raise anything for tensors without values
        name = tracer.module_path[-1] if tracer.module_path else ""
        layer = type(network.get_submodule(name)).__name__
        raise Error(f"{name or 'the network'} ({layer}) cannot be quantized: {error}") from error


def _get_module(node: fx.Node) -> nn.Module | None:
    """Return the module that a node calls, if any."""
    owner = node.graph.owning_module
    return owner.get_submodule(str(node.target)) if owner is not None and node.op == "call_module" else None


def _get_quantizable_layer(node: fx.Node) -> QuantizableLayer | None:
    """Return the convolution or fully connected layer that a node calls, if any; ONNX supports only zero padding."""
    module = _get_module(node)
    padded = isinstance(module, nn.Conv2d) and module.padding_mode != "zeros"
    return module if isinstance(module, QuantizableLayer) and not padded else None


def _is_relu(node: fx.Node) -> bool:
    return isinstance(_get_module(node), nn.ReLU) or node.target in (F.relu, torch.relu)


def _preserves_range(node: fx.Node) -> bool:
    """Return whether the output has the range of the first input, which elements of a tuple do not have."""
    if node.target is operator.getitem and not isinstance(node.args[1], tuple):
        return False
    return isinstance(_get_module(node), RANGE_PRESERVING_LAYERS) or node.target in RANGE_PRESERVING_OPS


def _runs_in_int8(node: fx.Node) -> bool:
    """Return whether the node is computed in int8."""
    return _get_quantizable_layer(node) is not None or node.target in ADD_AND_CONCAT_OPS


def _get_only_user(node: fx.Node) -> fx.Node:
    """Return the only user of a node, or the node itself if it has several."""
    return next(iter(node.users)) if len(node.users) == 1 else node


def _find_consumers(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes that use the output of a node, directly or through range-preserving nodes."""
    for user in node.users:
        if not _preserves_range(user):
            yield user
        elif user.args[0] is node:
            yield from _find_consumers(user)


def _is_quantized(node: fx.Node) -> bool:
    """Return whether the output of a node is quantized: the node or a consumer runs in int8; scores are not."""
    if _preserves_range(node) or _get_foldable_norm(_get_input_node(node)) is node:
        return False
    consumers = [consumer for consumer in _find_consumers(_get_fused_end(node)) if consumer.op != "output"]
    return any(map(_runs_in_int8, consumers)) or (_runs_in_int8(node) and bool(consumers))


def _get_input_node(node: fx.Node) -> fx.Node:
    first = node.args[0] if node.args else node
    return first if isinstance(first, fx.Node) else node


def _get_foldable_norm(node: fx.Node) -> fx.Node | None:
    """Return the batch normalization that can be folded into the layer of a node, if any."""
    user = _get_only_user(node)
    return (
        user
        if _get_quantizable_layer(node) and isinstance(_get_module(user), nn.BatchNorm1d | nn.BatchNorm2d)
        else None
    )


def _get_fused_end(node: fx.Node) -> fx.Node:
    """Return the last node of the fused group: layer, batch normalization and ReLU."""
    node = _get_foldable_norm(node) or node
    return user if _is_relu(user := _get_only_user(node)) else node


def _swap_pool_and_relu(graph: fx.Graph) -> None:
    """Swap max pooling and the ReLU after it; the result is equal, and the pooling runs in int8."""
    for pool in list(graph.nodes):
        source, relu = _get_input_node(pool), _get_only_user(pool)
        if isinstance(_get_module(pool), nn.MaxPool2d) and _is_relu(relu) and _get_only_user(source) is pool:
            relu.replace_all_uses_with(pool)
            relu.replace_input_with(pool, source)
            pool.replace_input_with(source, relu)
            pool.prepend(relu)


def _insert_after(node: fx.Node, name: str, module: nn.Module) -> None:
    """Insert a module after a node."""
    assert node.graph.owning_module is not None
    node.graph.owning_module.add_submodule(name, module)
    with node.graph.inserting_after(node):
        inserted = node.graph.call_module(name, (node,))
    node.replace_all_uses_with(inserted, lambda user: user is not inserted)


def _create_fake_quant_layer(layer: QuantizableLayer) -> FakeQuantConv2d | FakeQuantLinear:
    """Create the layer with fake-quantized weights; it shares the parameters."""
    converted: FakeQuantConv2d | FakeQuantLinear
    if isinstance(layer, nn.Conv2d):
        height, width = layer.kernel_size
        converted = FakeQuantConv2d(
            layer.in_channels, layer.out_channels, (height, width), groups=layer.groups, device="meta"
        )
        converted.stride, converted.padding, converted.dilation = layer.stride, layer.padding, layer.dilation
    else:
        converted = FakeQuantLinear(layer.in_features, layer.out_features, device="meta")
    converted.weight, converted.bias = layer.weight, layer.bias
    return converted


def _lower_to_onnx(prepared: fx.GraphModule) -> None:
    """Replace fake quantization with ONNX operators."""
    graph = prepared.graph
    for node in list(graph.nodes):
        module, layer, norm = _get_module(node), _get_quantizable_layer(node), _get_foldable_norm(node)
        if isinstance(module, FakeQuantActivation):
            if not module.activation_range.any():
                raise Error("the activation ranges of the network are not set; train or calibrate it first")
            prepared.set_submodule(str(node.target), QuantizedActivation(*module.compute_qparams()))
        elif layer is not None:
            if norm is not None:
                layer = _fold_batch_norm(layer, _get_module(norm))
                norm.replace_all_uses_with(node)
                graph.erase_node(norm)
            name = f"layers.{node.name}"
            prepared.add_submodule(name, QuantizedLayer(layer, _find_source_activation(_get_input_node(node)).scale))
            node.target = name
    prepared.recompile()


def _fold_batch_norm(layer: QuantizableLayer, norm: nn.Module | None) -> QuantizableLayer:
    """Fold the batch normalization into the layer before it."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    return fuse_conv_bn_eval(layer, norm) if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval(layer, norm)


def _find_source_activation(node: fx.Node) -> QuantizedActivation:
    """Return the quantized activation whose range the values of a node have."""
    while not isinstance(module := _get_module(node), QuantizedActivation):
        node = _get_input_node(node)
    return module
