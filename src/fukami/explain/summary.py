"""Model summary: output shape, parameters, cost and receptive field of each layer.

The network is traced once (``torch.fx``) and run on the meta device, which computes only shapes. The receptive field of
a unit is an interval of pixels in each direction, propagated from layer to layer (Araujo, Norris and Sim, "Computing
receptive fields of convolutional neural networks", Distill 2019). A window of k inputs with dilation d and padding p,
on units with effective stride j, changes the first unit's interval from [a, b] to [a - pj, b - pj + (k-1)dj]. A stride
s changes j to js. Where branches join, the interval is the union of theirs. A module of an unknown type that shrinks
its input is treated as pooling.
"""

import contextlib
import copy
import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fukami.errors import Error, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shape = tuple[int, int, int]
FLOAT_BYTES = 4
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LayerInfo:
    """Summary of one layer (a module or function call of the network), for one image.

    Args:
        name: name of the module, with ``:2`` for its second use; for a function, its name and number, as ``add_3``.
        op_type: class of the module, or name of the function.
        output_shape: ``(channels, height, width)`` or ``(features,)``.
        num_parameters: number of trainable parameters; 0 for the second use of a module.
        multiply_adds: multiply-adds of convolutions and linear layers; 0 for other layers.
        output_bytes: bytes of the output in float32; 0 if it uses the input's memory (in place, reshaped, dropout).
        receptive_field: height and width in pixels, including padding. None: the whole image, as for all layers after
            global pooling or flattening.
        effective_stride: distance in pixels between the receptive fields of neighboring units, vertical and horizontal;
            None without spatial positions.
        start: first row and column of the first unit's receptive field, negative in the padding; None as for
            ``receptive_field``. In upsampled maps, several units share a receptive field; this is the first unit's.
        depth: number of layers with weights on the longest path up to this one, as in the names VGG-16 and ResNet-50.
        on_trunk: whether every path to the output passes through this layer, so that it is not in a branch.
    """

    name: str
    op_type: str
    output_shape: tuple[int, ...]
    num_parameters: int
    multiply_adds: int
    output_bytes: int
    receptive_field: tuple[int, int] | None
    effective_stride: tuple[float, float] | None
    start: tuple[float, float] | None
    depth: int
    on_trunk: bool

    def get_input_region(self, row: int, column: int) -> tuple[int, int, int, int] | None:
        """Return first row, first column, last row + 1 and last column + 1 of a receptive field; None: all pixels."""
        if self.receptive_field is None or self.effective_stride is None or self.start is None:
            return None
        top, left = (round(s + i * j) for s, i, j in zip(self.start, (row, column), self.effective_stride, strict=True))
        return top, left, top + self.receptive_field[0], left + self.receptive_field[1]


@dataclass(frozen=True)
class Interval:
    """Receptive field of the first unit in one direction, from pixel ``first`` to ``last``.

    The receptive field of the next unit is shifted by ``effective_stride``.
    """

    first: float = 0.0
    last: float = 0.0
    effective_stride: float = 1.0

    def apply_window(self, kernel: int, stride: int, padding: int, dilation: int) -> "Interval":
        """Apply a convolution or pooling window."""
        first = -padding * self.effective_stride
        last = first + (kernel - 1) * dilation * self.effective_stride
        return Interval(self.first + first, self.last + last, self.effective_stride * stride)

    def apply_transposed_window(self, kernel: int, stride: int, padding: int, dilation: int) -> "Interval":
        """Apply a transposed convolution; the result is the largest receptive field of its units."""
        extent = (kernel - 1) * dilation
        first = math.ceil((padding - extent) / stride)
        last = first + math.ceil((extent + 1) / stride) - 1
        return Interval(
            self.first + first * self.effective_stride,
            self.last + last * self.effective_stride,
            self.effective_stride / stride,
        )

    def apply_pooling(self, size: int, out: int) -> "Interval":
        """Apply adaptive pooling of ``size`` units to ``out``: exact if ``out`` divides ``size``, else unbounded."""
        if size % out == 0 and out > 1:
            return self.apply_window(size // out, size // out, 0, 1)
        return self if size == out else Interval(-math.inf, math.inf, self.effective_stride * size / out)


ReceptiveField = tuple[Interval, Interval]  # rows, columns


def summarize_layers(model: nn.Module, shape: Shape) -> list[LayerInfo]:
    """Summarize the layers of the network in evaluation mode, in order of execution.

    Args:
        model: network with inputs ``(N, channels, height, width)``; it is not modified.
        shape: channels, height and width of the image.

    Raises:
        UsageError: the network does not accept such images.
        Error: the network has data-dependent control flow and cannot be traced.
    """
    check_shape(shape)
    traced = trace_model(
        copy_with_tensors(model, lambda value: (value.float() if value.is_floating_point() else value).to("meta"))
    )
    interpreter = _LayerInterpreter(traced)
    try:
        interpreter.run(torch.empty(2, *shape, device="meta"))
    except Exception as error:  # a layer may raise anything for an unsupported shape
        location = f"layer {interpreter.current_name}: " if interpreter.current_name else ""
        first_line, _, _ = str(error).partition("\n")
        raise UsageError(
            f"the network does not accept images of {'x'.join(map(str, shape))} ({location}{first_line}); "
            "use another size"
        ) from error
    return interpreter.layers


def get_traceable_module(model: nn.Module) -> nn.Module:
    """Return the traceable part of a network: ``model.get_traceable_module()`` if that exists, else the network."""
    traceable: nn.Module = getattr(model, "get_traceable_module", lambda: model)()
    return traceable


def count_parameters(model: nn.Module) -> int:
    """Count the parameters, including frozen ones and those of auxiliary branches that only training uses."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, shape: Shape) -> int:
    """Count the multiply-adds of the convolutions and linear layers for one image."""
    return sum(layer.multiply_adds for layer in summarize_layers(model, shape))


def count_costs(networks: Sequence[nn.Module], shape: Shape | None) -> dict[str, int]:
    """Count the parameters of the networks, and the multiply-adds of the first one for one image if it is traceable.

    Args:
        networks: networks of a task.
        shape: shape of the image; None if the input is not a single image of fixed size.
    """
    costs = {"parameters": sum(map(count_parameters, networks))}
    if shape is not None:
        # a user's own network may raise anything during tracing; a traceable copy may initialize layers
        with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]):
            costs["multiply_adds"] = count_multiply_adds(get_traceable_module(networks[0]), shape)
    return costs


def find_stages(layers: Sequence[LayerInfo]) -> list[LayerInfo]:
    """Find the last layer of the trunk at each resolution: before pooling, after a residual addition or concatenation.

    A resolution without weights, as after VGG's last pooling, is not a stage.
    """
    last = {layer.effective_stride: layer for layer in layers if layer.on_trunk and layer.receptive_field}
    return list({layer.depth: layer for layer in reversed(last.values())}.values())[::-1]


def find_last_activation(layers: Sequence[LayerInfo]) -> LayerInfo:
    """Find the first activation of the trunk after the last convolution, or the end of that convolution's stage.

    Raises:
        UsageError: the network has no convolution.
    """
    convolutions = [index for index, layer in enumerate(layers) if layer.multiply_adds and layer.receptive_field]
    if not convolutions:
        raise UsageError("the network has no convolution, so no units with a limited receptive field")
    candidates = [layer for layer in layers[convolutions[-1] :] if layer.receptive_field]
    # ReLU, relu_, GELU ...
    activations = [layer for layer in candidates if layer.on_trunk and "lu" in layer.op_type.lower()]
    if activations:
        return activations[0]
    return [layer for layer in candidates if layer.effective_stride == candidates[0].effective_stride][-1]


def plot_costs(layers: Sequence[LayerInfo]) -> "list[tuple[str, Figure]]":
    """Plot multiply-adds, parameters and output memory for each output resolution, in percent of the total."""
    from matplotlib.figure import Figure

    from fukami.image.charts import BLUE

    costs: dict[str, list[int]] = {}
    for layer in layers:
        name = (
            "×".join(map(str, layer.output_shape[1:]))
            if len(layer.output_shape) == 3 and layer.output_shape[1:] != (1, 1)
            else "vectors"
        )
        for kind, value in enumerate((layer.multiply_adds, layer.num_parameters, layer.output_bytes)):
            costs.setdefault(name, [0, 0, 0])[kind] += value
    charts = []
    for kind, title in enumerate(("multiply-adds, %", "parameters, %", "output memory, %")):
        figure = Figure(figsize=(3.1, 0.4 + 0.3 * len(costs)), layout="constrained")
        axes = figure.add_subplot()
        values = [row[kind] for row in costs.values()]
        percentages = [100 * value / max(sum(values), 1) for value in values]
        axes.bar_label(
            axes.barh(range(len(costs)), percentages, color=BLUE, height=0.65), fmt="%.1f", fontsize=8, padding=3
        )
        axes.set_yticks(range(len(costs)), list(costs))
        axes.set_xlim(0, 119)
        axes.set_xticks([])
        axes.invert_yaxis()
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        charts.append((title, figure))
    return charts


def check_shape(shape: Sequence[int]) -> None:
    """Check the shape of an image.

    Raises:
        UsageError: the shape is not channels, height and width, each at least 1.
    """
    if len(shape) != 3 or any(not isinstance(side, int) or side < 1 for side in shape):
        raise UsageError(f"the shape should be channels, height and width, each at least 1, not {tuple(shape)}")


def copy_with_tensors(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy a network with converted tensors, in evaluation mode and without parameter gradients."""
    memo: dict[int, Tensor] = {id(p): nn.Parameter(change(p.detach()), requires_grad=False) for p in model.parameters()}
    memo |= {id(buffer): change(buffer.detach()) for buffer in model.buffers()}
    return copy.deepcopy(model, memo).eval()


def trace_model(model: nn.Module) -> fx.GraphModule:
    """Trace the network as a graph of its modules and functions.

    Raises:
        Error: the network has data-dependent control flow.
    """
    try:
        return fx.GraphModule(model, _Tracer().trace(model))
    except (fx.proxy.TraceError, TypeError, ValueError) as error:
        raise Error(
            f"{type(model).__name__} cannot be explained: its control flow depends on its values ({error})"
        ) from error


def get_named_nodes(graph: fx.Graph) -> dict[str, fx.Node]:
    """Return the nodes of a traced network by their layer names in :func:`summarize_layers`."""
    names: dict[str, fx.Node] = {}
    used: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op not in ("placeholder", "output", "get_attr"):
            name = str(node.target) if node.op == "call_module" else node.name
            used[name] += 1
            names[name if used[name] == 1 else f"{name}:{used[name]}"] = node
    return names


def create_feature_extractor(
    model: nn.Module, layer_names: Sequence[str], include_output: bool = False
) -> fx.GraphModule:
    """Create a network that returns the outputs of the layers ``layer_names`` as a tuple.

    It uses the weights of ``model`` and computes only the layers that are needed.

    Args:
        model: the network; it is not modified.
        layer_names: names of layers in :func:`summarize_layers`.
        include_output: append the output of ``model`` to the tuple.
    """
    traced = trace_model(copy_with_tensors(model, lambda tensor: tensor))
    graph = traced.graph
    nodes = get_named_nodes(graph)
    output = next(node for node in graph.nodes if node.op == "output")
    features = []
    for name in layer_names:
        node = nodes[name]
        with graph.inserting_after(node):  # later layers may work in place, so they get a copy
            clone = graph.call_function(torch.clone, (node,))
        node.replace_all_uses_with(clone, delete_user_cb=partial(operator.is_not, clone))
        features.append(node)
    output.args = ((*features, *(output.args if include_output else ())),)
    graph.eliminate_dead_code()
    traced.recompile()
    return traced


class _Tracer(fx.Tracer):
    """Tracer that treats every module without children as a leaf, not only those of ``torch.nn``."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return not any(module.children()) or super().is_leaf_module(module, name)


class _LayerInterpreter(fx.Interpreter):
    """Interpreter that runs a traced network and summarizes each layer."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=False)
        self.names = {node: name for name, node in get_named_nodes(traced.graph).items()}
        self.trunk = _find_trunk(traced.graph)
        self.fields: dict[fx.Node, ReceptiveField | None] = {}
        self.depths: dict[fx.Node, int] = {}
        self.layers: list[LayerInfo] = []
        self.counted: set[int] = set()  # ids of the parameters already counted
        self.current_name = ""

    def run_node(self, node: fx.Node) -> object:
        self.current_name = self.names.get(node, self.current_name)
        out = super().run_node(node)
        inputs = node.all_input_nodes
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        has_weights = isinstance(module, (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, nn.Linear))
        self.depths[node] = max((self.depths[source] for source in inputs), default=0) + has_weights
        if node.op == "placeholder":
            self.fields[node] = (Interval(), Interval())
        elif isinstance(out, Tensor) and node in self.names:
            sources = [(self.env[one], self.fields[one]) for one in inputs if isinstance(self.env[one], Tensor)]
            self.fields[node] = _compute_receptive_field(node, module, sources, out)
            self.layers.append(self._describe_layer(node, module, [value for value, _ in sources], out))
        else:
            self.fields[node] = None
        return out

    def _describe_layer(
        self, node: fx.Node, module: nn.Module | None, inputs: Sequence[Tensor], out: Tensor
    ) -> LayerInfo:
        new_parameters = [] if module is None else [p for p in module.parameters() if id(p) not in self.counted]
        self.counted |= {id(parameter) for parameter in new_parameters}
        shares_memory = any(out.untyped_storage()._cdata == value.untyped_storage()._cdata for value in inputs)
        receptive_field = effective_stride = start = None
        if (field := self.fields[node]) is not None:
            rows, columns = field
            effective_stride = rows.effective_stride, columns.effective_stride
            if math.isfinite(rows.first) and math.isfinite(columns.first):
                start = rows.first, columns.first
                receptive_field = int(rows.last - rows.first) + 1, int(columns.last - columns.first) + 1
        return LayerInfo(
            name=self.names[node],
            op_type=type(module).__name__ if module is not None else _get_function_name(node),
            output_shape=tuple(out.shape[1:]),
            num_parameters=sum(parameter.numel() for parameter in new_parameters),
            multiply_adds=_count_multiply_adds(module, inputs, out),
            output_bytes=0 if shares_memory else out[0].numel() * FLOAT_BYTES,
            receptive_field=receptive_field,
            effective_stride=effective_stride,
            start=start,
            depth=self.depths[node],
            on_trunk=node in self.trunk,
        )


def _get_function_name(node: fx.Node) -> str:
    """Return the name of the function or method of a node."""
    return node.target if isinstance(node.target, str) else node.target.__name__.strip("_")


def _find_trunk(graph: fx.Graph) -> set[fx.Node]:
    """Find the nodes after which no earlier output is used."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    last_uses = {node: max((order[user] for user in node.users), default=index) for node, index in order.items()}
    trunk, last_use = set(), 0
    for node, index in order.items():
        if last_use <= index:
            trunk.add(node)
        last_use = max(last_use, last_uses[node])
    return trunk


def _count_multiply_adds(module: nn.Module | None, inputs: Sequence[Tensor], out: Tensor) -> int:
    """Count the multiply-adds of a layer for one image."""
    if isinstance(module, nn.Linear):
        return out[0].numel() * module.in_features
    if isinstance(module, CONVOLUTIONS):
        return out[0].numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, TRANSPOSED_CONVOLUTIONS):
        return inputs[0][0].numel() * module.out_channels // module.groups * math.prod(module.kernel_size)
    return 0


def _compute_receptive_field(
    node: fx.Node, module: nn.Module | None, sources: Sequence[tuple[Tensor, ReceptiveField | None]], out: Tensor
) -> ReceptiveField | None:
    """Compute the receptive field of a node's output; None if it has no spatial positions."""
    spatial = [(value, field) for value, field in sources if field is not None and value.dim() == 4]
    if out.dim() != 4 or not spatial:
        return None
    sizes, inputs = spatial[0][0].shape[2:], [field for _, field in spatial]
    joined = [
        Interval(min(a.first for a in axes), max(a.last for a in axes), min(a.effective_stride for a in axes))
        for axes in zip(*inputs, strict=True)
    ]
    window, offsets = _get_window(node, module), _get_offsets(node, module)
    transposed = isinstance(module, nn.ConvTranspose2d)
    result = []
    for direction, (axis, size, extent) in enumerate(zip(joined, sizes, out.shape[2:], strict=True)):
        if window:
            sides = [values[direction] for values in window]
            result.append(axis.apply_transposed_window(*sides) if transposed else axis.apply_window(*sides))
        elif offsets:
            first, step = offsets[direction]
            result.append(axis.apply_window(1, step, -first, 1))
        elif extent > size:  # upsampling: nearest, or linear between two neighbors
            finer = replace(axis, effective_stride=axis.effective_stride * size / extent)
            is_linear = "linear" in str(getattr(module, "mode", node.kwargs.get("mode", "")))
            result.append(replace(finer, first=axis.first - axis.effective_stride) if is_linear else finer)
        else:
            result.append(axis.apply_pooling(size, extent))
    return result[0], result[1]


def _get_window(node: fx.Node, module: nn.Module | None) -> list[tuple[int, int]] | None:
    """Return kernel, stride, padding and dilation of a window, vertical and horizontal; None for other nodes."""
    values: dict[str, Any] = {}
    if module is not None and hasattr(module, "kernel_size") and hasattr(module, "stride"):
        values = {key: getattr(module, key, None) for key in ("kernel_size", "stride", "padding", "dilation")}
    elif (
        node.op == "call_function" and "pool" in _get_function_name(node) and "adaptive" not in _get_function_name(node)
    ):
        names = ("kernel_size", "stride", "padding", "dilation")
        count = 4 if "max" in _get_function_name(node) else 3
        values = dict(zip(names[:count], node.args[1:], strict=False)) | node.kwargs
    if not values:
        return None
    kernel, dilation = _to_pair(values["kernel_size"]), _to_pair(values.get("dilation") or 1)
    stride = _to_pair(values.get("stride") or values["kernel_size"])
    padding = values.get("padding") or 0
    if isinstance(padding, str):
        same = [(k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True)]
        padding = same if padding == "same" else 0
    return [kernel, stride, _to_pair(padding), dilation]


def _get_offsets(node: fx.Node, module: nn.Module | None) -> list[tuple[int, int]] | None:
    """Return first unit and step of padding or slicing, vertical and horizontal; None for other nodes."""
    name = type(module).__name__.lower() if module is not None else _get_function_name(node)
    if name == "getitem" and isinstance(node.args[1], tuple):
        slices = [*node.args[1], slice(None), slice(None), slice(None), slice(None)][2:4]
        return [(item.start or 0, item.step or 1) if isinstance(item, slice) else (0, 1) for item in slices]
    if "pad" in name:
        padding: Any = [*node.args[1:2], *node.kwargs.values()][0] if module is None else getattr(module, "padding", 0)
        sides = [*padding, 0, 0, 0, 0] if isinstance(padding, Sequence) else [padding] * 4
        return [(-sides[2], 1), (-sides[0], 1)]
    return None


def _to_pair(value: Any) -> tuple[int, int]:
    """Return a (vertical, horizontal) pair from one number or a sequence of two."""
    return (operator.index(value),) * 2 if not isinstance(value, Sequence) else (value[0], value[1])
