"""The layers of a network: shape, parameters, cost and theoretical receptive field of each.

The network is traced once (``torch.fx``) and run on the meta device, which computes shapes and no numbers. The
receptive field of a unit is an interval of pixels in each direction, carried from layer to layer (Araujo, Norris and
Sim, "Computing receptive fields of convolutional neural networks", Distill 2019): a window of k inputs, d apart, p of
them in the padding, on units that lie j pixels apart, moves the first unit's interval from [a, b] to
[a - pj, b - pj + (k-1)dj], and a stride s makes j into js. Where branches meet, the interval is the union of theirs. A
module of an unknown kind that shrinks its input is taken for a pooling.
"""

import contextlib
import copy
import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fukami.errors import Error, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shape = tuple[int, int, int]
FLOAT_BYTES = 4  # bytes
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LayerInfo:
    """A step of the network, for one image.

    Args:
        name: of the module, ``:2`` added where it is used a second time; of a function and its number, as ``add_3``.
        op_type: class of the module, or name of the function.
        output_shape: of the output, ``(channels, height, width)`` or ``(features,)``.
        num_parameters: numbers that training sets; a module used again has none the second time.
        multiply_adds: of convolutions and linear layers, one for a product and its sum; 0 for all others.
        output_bytes: bytes of the output in float32; 0 where it lies in the input's memory (in place, reshaped,
            dropout).
        receptive_field: height and width in pixels, parts in the padding counted; None: the whole image, which is
            said of everything after a global pooling or a flattening, whatever the padding would add.
        effective_stride: pixels between the fields of neighbouring units, down and across; None where there are no
            positions.
        start: row and column where the field of the first unit begins, negative in the padding; None as above. What
            enlarges its input gives several units one field; there the positions are those of the first of them.
        depth: layers with weights on the longest path up to here, as the names VGG-16 and ResNet-50 count them.
        on_trunk: every path to the output passes through here, so it lies in no branch.
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
        """First row, first column, last row + 1 and last column + 1 of a unit's field; None: the whole image."""
        if self.receptive_field is None or self.effective_stride is None or self.start is None:
            return None
        top, left = (
            round(s + at * j) for s, at, j in zip(self.start, (row, column), self.effective_stride, strict=True)
        )
        return top, left, top + self.receptive_field[0], left + self.receptive_field[1]


@dataclass(frozen=True)
class Interval:
    """The input pixels from ``first`` to ``last`` that the first unit sees.

    The next unit's lie ``effective_stride`` further on.
    """

    first: float = 0.0
    last: float = 0.0
    effective_stride: float = 1.0

    def apply_window(self, kernel: int, stride: int, padding: int, dilation: int) -> "Interval":
        """Seen through a window."""
        first = -padding * self.effective_stride
        reach = first + (kernel - 1) * dilation * self.effective_stride
        return Interval(self.first + first, self.last + reach, self.effective_stride * stride)

    def apply_transposed_window(self, kernel: int, stride: int, padding: int, dilation: int) -> "Interval":
        """Seen through a transposed window, by the units that see most."""
        reach = (kernel - 1) * dilation
        first = math.ceil((padding - reach) / stride)
        last = first + math.ceil((reach + 1) / stride) - 1
        return Interval(
            self.first + first * self.effective_stride,
            self.last + last * self.effective_stride,
            self.effective_stride / stride,
        )

    def apply_pooling(self, size: int, out: int) -> "Interval":
        """After pooling ``size`` units to ``out``: exact where that divides, else everything."""
        if size % out == 0 and out > 1:
            return self.apply_window(size // out, size // out, 0, 1)
        return self if size == out else Interval(-math.inf, math.inf, self.effective_stride * size / out)


ReceptiveField = tuple[Interval, Interval]  # rows, columns


def summarize_layers(model: nn.Module, shape: Shape) -> list[LayerInfo]:
    """Every step of the network in evaluation, in order.

    Args:
        model: takes ``(N, channels, height, width)``; it is left as it is.
        shape: of the image: channels, height, width.

    Raises:
        UsageError: the network does not take such images.
        Error: the network decides by its values what to compute, so no trace tells all.
    """
    check_shape(shape)
    traced = trace_model(
        copy_with_tensors(model, lambda value: (value.float() if value.is_floating_point() else value).to("meta"))
    )
    walk = _LayerInterpreter(traced)
    try:
        walk.run(torch.empty(2, *shape, device="meta"))
    except Exception as error:  # whatever a layer says to a shape that it does not take
        at = f"layer {walk.current_name}: " if walk.current_name else ""
        first, _, _ = str(error).partition("\n")
        raise UsageError(
            f"the network does not take images of {'x'.join(map(str, shape))} ({at}{first}); give another size"
        ) from error
    return walk.layers


def get_traceable_module(model: nn.Module) -> nn.Module:
    """What of a network can be traced: all of a classifier, of others what they say in ``outline``."""
    return model.get_traceable_module() if hasattr(model, "get_traceable_module") else model  # type: ignore[operator]


def count_parameters(model: nn.Module) -> int:
    """Numbers that training sets, each once, also those of parts that only training uses."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, shape: Shape) -> int:
    """Multiply-adds of the convolutions and linear layers for one image."""
    return sum(layer.multiply_adds for layer in summarize_layers(model, shape))


def count_costs(networks: Sequence[nn.Module], shape: Shape | None) -> dict[str, int]:
    """Parameters of the networks and multiply-adds of the first one for one image, as far as they can be known.

    Args:
        networks: of a task.
        shape: of the image; None where the network takes no single image of one size.
    """
    costs = {"parameters": sum(map(count_parameters, networks))}
    if shape is not None:
        with contextlib.suppress(Exception):  # a network of the user's own may do anything when it is traced
            costs["multiply_adds"] = count_multiply_adds(get_traceable_module(networks[0]), shape)
    return costs


def find_stages(layers: Sequence[LayerInfo]) -> list[LayerInfo]:
    """The last layer of the trunk at each resolution: before a pooling, after a residual addition or concatenation.

    A resolution without weights, as after VGG's last pooling, is no stage.
    """
    last = {layer.effective_stride: layer for layer in layers if layer.on_trunk and layer.receptive_field}
    return list({layer.depth: layer for layer in reversed(last.values())}.values())[::-1]


def find_last_activation(layers: Sequence[LayerInfo]) -> LayerInfo:
    """The first activation of the trunk after the last convolution, or the end of that convolution's stage.

    Raises:
        UsageError: the network has no convolution.
    """
    convolutions = [number for number, layer in enumerate(layers) if layer.multiply_adds and layer.receptive_field]
    if not convolutions:
        raise UsageError("the network has no convolution, so no units that see a part of the image")
    rest = [layer for layer in layers[convolutions[-1] :] if layer.receptive_field]
    active = [layer for layer in rest if layer.on_trunk and "lu" in layer.op_type.lower()]  # ReLU, relu_, GELU ...
    return active[0] if active else [layer for layer in rest if layer.effective_stride == rest[0].effective_stride][-1]


def plot_costs(layers: Sequence[LayerInfo]) -> "Figure":
    """Multiply-adds, parameters and memory of the outputs, by resolution of the output."""
    from matplotlib.figure import Figure

    costs: dict[str, list[int]] = {}
    for layer in layers:
        name = (
            "×".join(map(str, layer.output_shape[1:]))
            if len(layer.output_shape) == 3 and layer.output_shape[1:] != (1, 1)
            else "vectors"
        )
        for number, value in enumerate((layer.multiply_adds, layer.num_parameters, layer.output_bytes)):
            costs.setdefault(name, [0, 0, 0])[number] += value
    drawn = Figure(figsize=(9, 1.0 + 0.3 * len(costs)), layout="constrained")
    titles = ("multiply-adds, %", "parameters, %", "memory of the outputs, %")
    for number, (axes, title) in enumerate(zip(drawn.subplots(1, 3, sharey=True), titles, strict=True)):
        values = [each[number] for each in costs.values()]
        shares = [100 * value / max(sum(values), 1) for value in values]
        axes.bar_label(
            axes.barh(range(len(costs)), shares, color="#4878a8", height=0.65), fmt="%.1f", fontsize=8, padding=3
        )
        axes.set_yticks(range(len(costs)), list(costs))
        axes.set_xlim(0, 119)
        axes.set_xticks([])
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    drawn.axes[0].invert_yaxis()
    return drawn


def check_shape(shape: Sequence[int]) -> None:
    """Refuse what is no image's shape."""
    if len(shape) != 3 or any(not isinstance(side, int) or side < 1 for side in shape):
        raise UsageError(f"an image's shape is channels, height and width, each at least 1, not {tuple(shape)}")


def copy_with_tensors(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """The network in evaluation with changed tensors and without gradients of its own; the given one stays as it is."""
    memo: dict[int, Any] = {id(p): nn.Parameter(change(p.detach()), requires_grad=False) for p in model.parameters()}
    memo |= {id(buffer): change(buffer.detach()) for buffer in model.buffers()}
    return copy.deepcopy(model, memo).eval()


def trace_model(model: nn.Module) -> fx.GraphModule:
    """The network as a graph of its modules and functions.

    Raises:
        Error: it decides by its values what to compute.
    """
    try:
        return fx.GraphModule(model, _Tracer().trace(model))
    except (fx.proxy.TraceError, TypeError, ValueError) as error:
        raise Error(f"{type(model).__name__} cannot be explained: its steps depend on its values ({error})") from error


def get_named_nodes(graph: fx.Graph) -> dict[str, fx.Node]:
    """The steps of a traced network by the names that :func:`summarize_layers` gives them."""
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
    """A network that gives the outputs of the layers ``layer_names`` as a tuple, and last the model's own if asked for.

    It shares the weights of ``model`` and computes only what leads there.
    """
    traced = trace_model(copy_with_tensors(model, lambda tensor: tensor))
    graph = traced.graph
    steps = get_named_nodes(graph)
    end = next(node for node in graph.nodes if node.op == "output")
    found = []
    for name in layer_names:
        step = steps[name]
        with graph.inserting_after(step):  # what follows may work in place, so it works on a copy
            rest = graph.call_function(torch.clone, (step,))
        step.replace_all_uses_with(rest, delete_user_cb=lambda user, rest=rest: user is not rest)  # type: ignore[misc]
        found.append(step)
    end.args = ((*found, *(end.args if include_output else ())),)
    graph.eliminate_dead_code()
    traced.recompile()
    return traced


class _Tracer(fx.Tracer):
    """Takes what has no parts as one step, also where it is not of ``torch.nn``."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return not any(module.children()) or super().is_leaf_module(module, name)


class _LayerInterpreter(fx.Interpreter):
    """Runs a traced network and notes each step."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=False)
        self.names = {node: name for name, node in get_named_nodes(traced.graph).items()}
        self.trunk = _find_trunk(traced.graph)
        self.fields: dict[fx.Node, ReceptiveField | None] = {}
        self.depths: dict[fx.Node, int] = {}
        self.layers: list[LayerInfo] = []
        self.counted: set[int] = set()  # parameters that have been counted
        self.current_name = ""

    def run_node(self, node: fx.Node) -> Any:
        self.current_name = self.names.get(node, self.current_name)
        out = super().run_node(node)
        inputs = node.all_input_nodes
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        weighs = isinstance(module, (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, nn.Linear))
        self.depths[node] = max((self.depths[one] for one in inputs), default=0) + weighs
        if node.op == "placeholder":
            self.fields[node] = (Interval(), Interval())
        elif isinstance(out, Tensor) and node in self.names:
            before = [(self.env[one], self.fields[one]) for one in inputs if isinstance(self.env[one], Tensor)]
            self.fields[node] = _compute_receptive_field(node, module, before, out)
            self.layers.append(self._describe_layer(node, module, [value for value, _ in before], out))
        else:
            self.fields[node] = None
        return out

    def _describe_layer(
        self, node: fx.Node, module: nn.Module | None, inputs: Sequence[Tensor], out: Tensor
    ) -> LayerInfo:
        own = [] if module is None else [p for p in module.parameters() if id(p) not in self.counted]
        self.counted |= {id(parameter) for parameter in own}
        shares = any(out.untyped_storage()._cdata == value.untyped_storage()._cdata for value in inputs)
        field = self.fields[node]
        whole = field is None or any(math.isinf(axis.first) for axis in field)
        return LayerInfo(
            name=self.names[node],
            op_type=type(module).__name__ if module is not None else _get_function_name(node),
            output_shape=tuple(out.shape[1:]),
            num_parameters=sum(parameter.numel() for parameter in own),
            multiply_adds=_count_multiply_adds(module, inputs, out),
            output_bytes=0 if shares else out[0].numel() * FLOAT_BYTES,
            receptive_field=None if whole else tuple(int(axis.last - axis.first) + 1 for axis in field),  # type: ignore[union-attr,arg-type]
            effective_stride=None if field is None else tuple(axis.effective_stride for axis in field),  # type: ignore[arg-type]
            start=None if whole else tuple(axis.first for axis in field),  # type: ignore[union-attr,arg-type]
            depth=self.depths[node],
            on_trunk=node in self.trunk,
        )


def _get_function_name(node: fx.Node) -> str:
    """What the function or method of a step is called."""
    return node.target if isinstance(node.target, str) else node.target.__name__.strip("_")


def _find_trunk(graph: fx.Graph) -> set[fx.Node]:
    """The steps after which nothing computed before them is used."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    last = {node: max((order[user] for user in node.users), default=number) for node, number in order.items()}
    trunk, used = set(), 0
    for node, number in order.items():
        if used <= number:
            trunk.add(node)
        used = max(used, last[node])
    return trunk


def _count_multiply_adds(module: nn.Module | None, inputs: Sequence[Tensor], out: Tensor) -> int:
    """Multiply-adds for one image."""
    if isinstance(module, nn.Linear):
        return out[0].numel() * module.in_features
    if isinstance(module, CONVOLUTIONS):
        return out[0].numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, TRANSPOSED_CONVOLUTIONS):
        return inputs[0][0].numel() * module.out_channels // module.groups * math.prod(module.kernel_size)
    return 0


def _compute_receptive_field(
    node: fx.Node, module: nn.Module | None, before: Sequence[tuple[Tensor, ReceptiveField | None]], out: Tensor
) -> ReceptiveField | None:
    """The receptive field of a step's output; None where it has no positions."""
    known = [(value, field) for value, field in before if field is not None and value.dim() == 4]
    if out.dim() != 4 or not known:
        return None
    sizes, inputs = known[0][0].shape[2:], [field for _, field in known]
    joined = [
        Interval(min(a.first for a in axes), max(a.last for a in axes), min(a.effective_stride for a in axes))
        for axes in zip(*inputs, strict=True)
    ]
    window, offsets = _get_window(node, module), _get_offsets(node, module)
    transposed = isinstance(module, nn.ConvTranspose2d)
    seen = []
    for number, (axis, size, extent) in enumerate(zip(joined, sizes, out.shape[2:], strict=True)):
        if window:
            sides = [values[number] for values in window]
            seen.append(axis.apply_transposed_window(*sides) if transposed else axis.apply_window(*sides))
        elif offsets:
            first, step = offsets[number]
            seen.append(axis.apply_window(1, step, -first, 1))
        elif extent > size:  # enlarged: by repetition, or between two neighbours
            finer = replace(axis, effective_stride=axis.effective_stride * size / extent)
            blurred = "linear" in str(getattr(module, "mode", node.kwargs.get("mode", "")))
            seen.append(replace(finer, first=axis.first - axis.effective_stride) if blurred else finer)
        else:
            seen.append(axis.apply_pooling(size, extent))
    return seen[0], seen[1]


def _get_window(node: fx.Node, module: nn.Module | None) -> list[tuple[int, int]] | None:
    """Kernel, stride, padding and dilation, down and across, of a step that looks through a window."""
    values: Any = None
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
    """The first unit and the step, down and across, of a step that pads or slices."""
    name = type(module).__name__.lower() if module is not None else _get_function_name(node)
    if name == "getitem" and isinstance(node.args[1], tuple):
        cuts = [*node.args[1], slice(None), slice(None), slice(None), slice(None)][2:4]
        return [(cut.start or 0, cut.step or 1) if isinstance(cut, slice) else (0, 1) for cut in cuts]
    if "pad" in name:
        padding: Any = module.padding if module is not None else [*node.args[1:2], *node.kwargs.values()][0]
        sides = [*padding, 0, 0, 0, 0] if isinstance(padding, Sequence) else [padding] * 4
        return [(-sides[2], 1), (-sides[0], 1)]
    return None


def _to_pair(value: Any) -> tuple[int, int]:
    """One number for both directions, or one for each."""
    return (operator.index(value),) * 2 if not isinstance(value, Sequence) else (value[0], value[1])
