"""ONNX export and inference with ONNX Runtime."""

import contextlib
import copy
import functools
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fukami.errors import Error, require_extra
from fukami.layers.detection_types import Detections
from fukami.layers.ensemble import Ensemble
from fukami.system import get_total_memory

with require_extra("export", "the precision int8 or onnx"):
    import onnx
    import onnx.inliner
    import onnxruntime


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of an exported network.

    Attributes:
        input_names, output_names: names in the file.
        trace_batch_size: batch size of the traced example.
        dynamic_axes: names of the dynamic dimensions of each input.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    trace_batch_size: int
    dynamic_axes: tuple[dict[int, str], ...]


CLASSIFIER = Signature(("images",), ("scores",), 2, ({0: "N"},))
ALLOWED_DOMAINS = ("", "ai.onnx", "com.microsoft")  # domains of the exported operators
MAX_MEMORY_FRACTION = 0.75  # of the memory of the machine
LOOP_OPS = {"Loop", "Scan", "SequenceMap"}
MAX_OPERATORS = 1_000_000  # with those of functions; the largest exports have some thousands
MAX_FUNCTION_DEPTH = 50
MAX_TENSOR_ELEMENTS = 1 << 26  # 64 maps of 1,024×1,024
MAX_SHAPE_BYTES = 1 << 12  # larger tensors are weights, not shapes
Shapes = Mapping[str, Sequence[onnx.TensorShapeProto.Dimension]]  # sides of tensors by name
DETECTOR = Signature(("images", "sizes"), ("boxes", "classes", "scores"), 1, ({2: "height", 3: "width"}, {}))
SEGMENTER = Signature(("images",), ("scores",), 2, ({0: "N", 2: "height", 3: "width"},))
BOARD = Signature(("planes",), ("policy", "value"), 2, ({0: "N"},))
GO = Signature(("planes",), ("policy", "value", "score", "owners"), 2, ({0: "N"},))
SIGNATURES = {"classifier": CLASSIFIER, "detector": DETECTOR, "segmenter": SEGMENTER, "board": BOARD, "go": GO}


def export_onnx(
    network: nn.Module, shape: tuple[int, int, int], metadata: dict[str, str], signature: Signature = CLASSIFIER
) -> bytes:
    """Export a network as an ONNX file in float32.

    Args:
        network: network, exported in evaluation mode; it is not modified.
        shape: input shape ``(C, H, W)``.
        metadata: metadata of the file, such as the image transform.
        signature: ``CLASSIFIER``: normalized ``images`` ``(N, C, H, W)`` to ``scores`` ``(N, classes)``; N is dynamic.
            ``DETECTOR``: one of the ``images`` ``(1, C, H, W)`` and its ``sizes`` ``(1, 2)``, height and width without
            padding, to ``boxes`` ``(k, 4)``, ``classes`` ``(k,)`` and ``scores`` ``(k,)``; H and W are dynamic.
            ``SEGMENTER``: ``images`` ``(N, C, H, W)`` to ``scores`` ``(N, classes, H, W)``; N, H and W are dynamic.

    Raises:
        Error: a layer cannot be exported; the message names the layer and reason.
    """
    return serialize_model(export_model_proto(copy_for_export(network), shape, signature), metadata)


def export_model_proto(
    network: nn.Module, shape: tuple[int, int, int], signature: Signature = CLASSIFIER
) -> onnx.ModelProto:
    """Export a network from :func:`copy_for_export` as an ONNX model; see :func:`export_onnx`."""
    with _suppress_export_logs():
        program = _export_program(network, shape, signature)
        try:
            with require_extra("export", "the precision int8 or onnx"):  # torch imports onnxscript
                translated = torch.onnx.export(
                    program,
                    input_names=signature.input_names,
                    output_names=signature.output_names,
                    dynamic_shapes=signature.dynamic_axes,
                    verbose=False,
                )
        except torch.onnx.errors.OnnxExporterError as error:
            reasons = [str(error), *_iterate_causes(error)]
            raise _create_export_error(network, _find_failing_layer(program, reasons[0]), reasons[-1]) from error
        assert translated is not None
        return translated.model_proto


def copy_for_export(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU in evaluation mode; the number of ensemble members is fixed for the export."""
    network = copy.deepcopy(network).eval().cpu()
    for module in network.modules():
        if isinstance(module, Ensemble):
            module.models = nn.ModuleList([*module.models[: int(module.num_active) - 1], module.models[-1]])
            del module.num_active
            module.__dict__["num_active"] = len(module.models)
    return network


def serialize_model(model: onnx.ModelProto, metadata: dict[str, str]) -> bytes:
    """Serialize a model with ``metadata``, without the references to source files that the exporter adds."""
    for proto in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        proto.ClearField("metadata_props")
        proto.ClearField("doc_string")
    onnx.helper.set_model_props(model, metadata)
    content: bytes = model.SerializeToString()
    return content


class OnnxNetwork(nn.Module):
    """Network of an ONNX file, computed by ONNX Runtime on the CPU; it cannot be trained.

    Args:
        content: content of a file from :func:`export_onnx` or :mod:`fukami.quantization.int8`.
        num_classes: number of classes that a detector may predict; None: any.

    Attributes:
        content: content of the file.
        metadata: metadata of the file.

    Raises:
        Error: the content is corrupted, not a network of fukami, or refers to other files.
    """

    def __init__(self, content: bytes, num_classes: int | None = None) -> None:
        super().__init__()
        check_model(content)
        self.num_classes = num_classes
        limit_memory()
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # fatal only; errors are raised as fukami.Error
        if _has_int16_overflow():
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self.session = onnxruntime.InferenceSession(
                content,
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,  # the fallback prints to stdout
            )
            self.input_names = tuple(value.name for value in self.session.get_inputs())
            self.output_names = tuple(value.name for value in self.session.get_outputs())
            self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        except Exception as error:  # ONNX Runtime has many error classes
            raise Error(f"ONNX Runtime cannot read the network; export it again: {error}") from error
        if (self.input_names, self.output_names) not in [
            (form.input_names, form.output_names) for form in SIGNATURES.values()
        ]:
            names = f"the inputs {', '.join(self.input_names)} and the outputs {', '.join(self.output_names)}"
            raise Error(f"the ONNX file has {names}, so fukami did not export it; export a run with fukami export")
        (score_shape,) = [value.shape for value in self.session.get_outputs() if value.name == "scores"] or [()]
        has_scores = self.input_names == ("images",)  # of a class each
        self.num_scores = (score_shape[1:2] or [0])[0] if has_scores else None
        self.empty = nn.Parameter(torch.empty(0))  # gives the module a device and dtype
        self.content = content

    def forward(self, *inputs: Tensor) -> Tensor | list[Tensor] | list[Detections]:
        """Return the scores of normalized images, or a detector's detections for each image, on the CPU.

        For the planes of positions of a game, return all outputs.
        """
        if self.input_names == DETECTOR.input_names:
            return [
                self._check_detections(Detections(*self._run_session(image_inputs)))
                for image_inputs in zip(*(torch.split(value, 1) for value in inputs), strict=True)
            ]
        outputs = self._run_session(inputs)
        return outputs if self.input_names == BOARD.input_names else outputs[0]

    def _check_detections(self, detections: Detections) -> Detections:
        boxes, classes, scores = detections
        is_valid = boxes.shape == (len(scores), 4) and classes.shape == scores.shape and classes.dtype == torch.int64
        if not is_valid or (classes < 0).any() or (classes >= (self.num_classes or math.inf)).any():
            raise Error("the ONNX file predicts boxes or classes that its run does not have; export the run again")
        return detections

    def _run_session(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        arrays = [value.detach().to("cpu", torch.float32).contiguous().numpy() for value in inputs]
        try:
            outputs = self.session.run(self.output_names, dict(zip(self.input_names, arrays, strict=True)))
        except Exception as error:  # many error classes, as above
            first = str(error).partition("\n")[0]
            raise Error(f"ONNX Runtime cannot compute the network ({first[:300]}); export it again") from error
        return [torch.from_numpy(output) for output in outputs]


@functools.cache
def limit_memory() -> None:
    """Limit the memory of all networks of ONNX Runtime in this process: a file determines the shapes of its tensors."""
    information = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    max_bytes = int(MAX_MEMORY_FRACTION * get_total_memory())
    onnxruntime.create_and_register_allocator(information, onnxruntime.OrtArenaCfg(max_bytes, -1, -1, -1))


def check_model(content: bytes) -> None:
    """Check that an ONNX file is self-contained and limited in operators and memory.

    Raises:
        Error: the file is corrupted, has weights in other files (external data), sparse weights, operators of other
            libraries, loops, functions that expand to more than a million operators, or tensors of more than 67
            million numbers that do not depend on the input.
    """
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # an error class of protobuf
        raise Error(f"the ONNX file is corrupted ({error}); export it again") from None
    check_functions(model)
    model = onnx.inliner.inline_local_functions(model)
    if model.functions:
        raise Error("the ONNX file has functions of other operator versions; export the network again")
    for node, tensors in _walk_nodes(model.graph):
        for tensor in tensors:
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                raise Error(
                    f"the ONNX file has the weights {tensor.name[:100]!r} in another file (external data), which is "
                    "not supported; export the network again, to one file"
                )
        if node is not None and (node.domain not in ALLOWED_DOMAINS or node.op_type in LOOP_OPS):
            raise Error(
                f"the ONNX file has the operator {node.domain[:50]}.{node.op_type[:50]}, which exports of fukami "
                "never contain; export the network again"
            )
    largest, num_constants = _count_elements(model)
    # weights that are converted and transposed may exceed the limit
    if largest > max(MAX_TENSOR_ELEMENTS, len(content)) or num_constants > max(MAX_TENSOR_ELEMENTS, 2 * len(content)):
        raise Error(
            f"the ONNX file computes a tensor of {largest:,} numbers, and {num_constants:,} constants, for any input; "
            "export the network again"
        )


def check_functions(model: onnx.ModelProto) -> None:
    """Check that the functions of a model expand to a limited number of operators.

    Raises:
        Error: they do not, call each other in a circle, or have defaults of attributes or overloads, which other
            checks would not see.
    """
    if any(function.attribute_proto or function.overload for function in model.functions):
        raise Error(
            "the ONNX file has functions with defaults or overloads, which exports of fukami never contain; export the "
            "network again"
        )
    functions = {(function.domain, function.name): function for function in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count_nodes(nodes: Sequence[onnx.NodeProto], depth: int) -> int:
        total = 0
        for node in nodes:
            key = node.domain, node.op_type
            if key in functions and key not in counts:
                counts[key] = MAX_OPERATORS + 1  # until it is counted, for a circle
                counts[key] = count_nodes(functions[key].node, depth + 1) if depth < MAX_FUNCTION_DEPTH else counts[key]
            total += counts.get(key, 1)
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    total += count_nodes(inner.node, depth + 1) if depth < MAX_FUNCTION_DEPTH else MAX_OPERATORS + 1
        return min(total, MAX_OPERATORS + 1)

    if count_nodes(model.graph.node, 0) > MAX_OPERATORS:
        raise Error(f"the ONNX file has more than {MAX_OPERATORS:,} operators; export the network again")


def _walk_nodes(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto | None, list[onnx.TensorProto]]]:
    """Yield every operator of a graph, including subgraphs, with its tensors.

    Raises:
        Error: the weights are sparse.
    """
    if graph.sparse_initializer:
        raise Error("the ONNX file has sparse weights, which exports of fukami never contain; export the network again")
    yield None, [*graph.initializer]
    for node in graph.node:
        tensors: list[onnx.TensorProto] = []
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise Error(
                    "the ONNX file has sparse weights, which exports of fukami never contain; export the network again"
                )
            for inner in (attribute.g, *attribute.graphs):
                if inner.ByteSize():
                    yield from _walk_nodes(inner)
        yield node, tensors


def _count_elements(model: onnx.ModelProto) -> tuple[int, int]:
    """Count the elements of the largest tensor whose shape does not depend on the input, and of all constants.

    Weights are removed from ``model`` first; their size is limited by that of the file.

    Raises:
        Error: the shapes cannot be inferred, or that of a constant is not known.
    """
    constants = {"", *(tensor.name for tensor in model.graph.initializer)}
    shapes = []
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= MAX_SHAPE_BYTES:
            shapes.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
        else:
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    del model.graph.initializer[:]
    model.graph.initializer.extend(shapes)
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:  # onnx has many error classes
        first = str(error).partition("\n")[0]
        raise Error(f"the shapes of the ONNX file are not known ({first[:300]}); export the network again") from error
    return _count_graph_elements(graph, constants, {})


def _count_graph_elements(graph: onnx.GraphProto, constants: set[str], outer_shapes: Shapes) -> tuple[int, int]:
    """Count the elements of a graph and its branches; ``constants`` and ``outer_shapes`` are those outside of it.

    ONNX Runtime computes constants when it loads a file, without a limit of memory, so their shapes must be known.
    """
    constants = {*constants, *(tensor.name for tensor in graph.initializer)}
    shapes = {
        value.name: value.type.tensor_type.shape.dim
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    counts = {name: math.prod(max(side.dim_value, 1) for side in sides) for name, sides in shapes.items()}
    shapes = {**outer_shapes, **shapes}
    largest, num_constants = max(counts.values(), default=0), 0
    for node in graph.node:
        if constants.issuperset(node.input) or _is_constant_shape(node, shapes):
            constants.update(node.output)
            for name in filter(None, node.output):
                num_constants += counts.get(name, 0)
                if name not in shapes or not all(side.HasField("dim_value") for side in shapes[name]):
                    raise Error(
                        f"the ONNX file has a constant of an unknown size, {name[:100]!r}, which exports of fukami "
                        "never contain; export the network again"
                    )
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                inner_largest, num_inner = _count_graph_elements(inner, constants, shapes)
                largest, num_constants = max(largest, inner_largest), num_constants + num_inner
    return largest, num_constants


def _is_constant_shape(node: onnx.NodeProto, shapes: Shapes) -> bool:
    """Return whether an operator returns sides of a tensor that do not depend on the input, which are a constant."""
    if node.op_type != "Shape" or not node.input or node.input[0] not in shapes:
        return False
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    sides = list(shapes[node.input[0]])[bounds.get("start", 0) : bounds.get("end")]
    return all(side.HasField("dim_value") for side in sides)


def _has_int16_overflow() -> bool:
    """Return whether ONNX Runtime's int8 sums may overflow 16 bits by default, as on x86 without VNNI."""
    capabilities = torch.cpu.get_capabilities()
    return capabilities.get("architecture") == "x86_64" and not (
        capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")
    )


def _export_program(
    network: nn.Module, shape: tuple[int, int, int], signature: Signature
) -> torch.export.ExportedProgram:
    """Trace the operations of the network; if tracing fails, the error names the layer."""
    module_stack: list[str] = []
    hooks = []
    for name, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: module_stack.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: module_stack.__delitem__(-1)))
    try:
        images, sizes = (
            torch.zeros(signature.trace_batch_size, *shape),
            torch.tensor([shape[1:]] * signature.trace_batch_size).float(),
        )
        examples = (images, sizes)[: len(signature.input_names)]
        dynamic_shapes = tuple(dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in signature.dynamic_axes)
        return torch.export.export(network, examples, dynamic_shapes=dynamic_shapes)
    except Exception as error:  # the layer or the tracer may raise anything
        raise _create_export_error(network, module_stack[-1] if module_stack else "", str(error)) from error
    finally:
        for hook in hooks:
            hook.remove()


def _find_failing_layer(program: torch.export.ExportedProgram, message: str) -> str:
    """Return the name of the layer whose operation ``%name`` the exporter's message names."""
    match = re.search(r"node %(\w+) ", message)
    for node in program.run_decompositions().graph.nodes:
        if match and match[1] in node.name and node.meta.get("nn_module_stack"):
            name, _ = list(node.meta["nn_module_stack"].values())[-1]
            return str(name)
    return ""


def _create_export_error(network: nn.Module, name: str, reason: str) -> Error:
    layer = network.get_submodule(name)
    first = reason.strip().partition("\n")[0]
    return Error(f"{name or 'the network'} ({type(layer).__name__}) cannot be exported to ONNX: {first}")


def _iterate_causes(error: BaseException) -> Iterator[str]:
    while error.__cause__ is not None:
        error = error.__cause__
        yield str(error)


@contextlib.contextmanager
def _suppress_export_logs() -> Iterator[None]:
    """Suppress log messages, warnings and stderr output of the exporters."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
