"""ONNX files: networks that ONNX Runtime and many other programs can run without torch or fukami."""

import contextlib
import copy
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from fukami.errors import Error
from fukami.layers.detection_types import Detections
from fukami.layers.ensemble import Ensemble


@dataclass(frozen=True)
class Signature:
    """What the network of a file is given and what it answers, by name.

    Attributes:
        input_names, output_names: their names.
        trace_batch_size: of images that it is traced with.
        dynamic_axes: the dimensions of each input that are free, and what they are called.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    trace_batch_size: int
    dynamic_axes: tuple[dict[int, str], ...]


CLASSIFIER = Signature(("images",), ("scores",), 2, ({0: "N"},))
ALLOWED_DOMAINS = ("", "ai.onnx", "com.microsoft")  # of operations that exports have; others are of other libraries
LOOP_OPS = {"Loop", "Scan", "SequenceMap"}
MAX_TENSOR_ELEMENTS = 1 << 26  # numbers; 64 maps of 1,024×1,024
MAX_SHAPE_BYTES = 1 << 12  # bytes of a tensor that may be a shape; larger ones are weights
DETECTOR = Signature(("images", "sizes"), ("boxes", "classes", "scores"), 1, ({2: "height", 3: "width"}, {}))
SEGMENTER = Signature(("images",), ("scores",), 2, ({0: "N", 2: "height", 3: "width"},))
SIGNATURES = {"classifier": CLASSIFIER, "detector": DETECTOR, "segmenter": SEGMENTER}


def export_onnx(
    network: nn.Module, shape: tuple[int, int, int], metadata: dict[str, str], signature: Signature = CLASSIFIER
) -> bytes:
    """The network as an ONNX file, float32.

    Args:
        network: it is exported as it answers in evaluation, and stays as it is.
        shape: ``(C, H, W)`` of an image.
        metadata: what the file says of itself, such as how images are prepared (ONNX calls it the metadata).
        signature: ``CLASSIFIER``: normalised ``images`` ``(N, C, H, W)`` to ``scores`` ``(N, classes)``, N is free.
            ``DETECTOR``: one of the ``images`` ``(1, C, H, W)`` and its ``sizes`` ``(1, 2)``, height and width in the
            frame, to ``boxes`` ``(k, 4)``, ``classes`` ``(k,)`` and ``scores`` ``(k,)``, H and W are free.
            ``SEGMENTER``: ``images`` ``(N, C, H, W)`` to ``scores`` ``(N, classes, H, W)``, N, H and W are free.

    Raises:
        Error: a layer cannot be exported; the message names it and says why.
    """
    return serialize_model(export_model_proto(copy_for_export(network), shape, signature), metadata)


def export_model_proto(
    network: nn.Module, shape: tuple[int, int, int], signature: Signature = CLASSIFIER
) -> onnx.ModelProto:
    """A network from :func:`copy_for_export` in ONNX's words; otherwise as :func:`export_onnx`."""
    with _suppress_export_logs():
        program = _export_program(network, shape, signature)
        try:
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
    """A copy on the CPU, in evaluation; the number of members that answer is fixed: an export cannot follow it."""
    network = copy.deepcopy(network).eval().cpu()
    for module in network.modules():
        if isinstance(module, Ensemble):
            module.models = nn.ModuleList([*module.models[: int(module.joined) - 1], module.models[-1]])
            del module.joined
            module.__dict__["joined"] = len(module.models)
    return network


def serialize_model(model: onnx.ModelProto, metadata: dict[str, str]) -> bytes:
    """The file of a model, which says ``metadata`` of itself, and nothing of the sources it was translated from."""
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.helper.set_model_props(model, metadata)
    content: bytes = model.SerializeToString()
    return content


class OnnxNetwork(nn.Module):
    """The network of an ONNX file, computed by ONNX Runtime on the CPU; it cannot be trained.

    Args:
        content: of a file that :func:`export_onnx` or :mod:`fukami.quantization.int8` made.

    Attributes:
        content: the same.
        metadata: what the file says of itself.

    Raises:
        Error: the content is damaged, or no such network; or it reads other files.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        check_model(content)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # nothing: what goes wrong is an error of ours
        if _has_int16_overflow():
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self.session = onnxruntime.InferenceSession(
                content,
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,  # which prints to stdout
            )
            self.input_names = tuple(value.name for value in self.session.get_inputs())
            self.output_names = tuple(value.name for value in self.session.get_outputs())
            self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        except Exception as error:  # ONNX Runtime raises a class of its own for each kind of damage
            raise Error(f"ONNX Runtime cannot read the network, so export it again: {error}") from error
        if (self.input_names, self.output_names) not in [
            (form.input_names, form.output_names) for form in SIGNATURES.values()
        ]:
            given = f"the inputs {', '.join(self.input_names)} and the outputs {', '.join(self.output_names)}"
            raise Error(f"the ONNX file has {given}: it is none that fukami exported")
        self.empty = nn.Parameter(torch.empty(0))  # by which its device and type are asked for
        self.content = content

    def forward(self, *inputs: Tensor) -> Any:
        """Scores of normalised images, or of a detector what it found in each; on the CPU."""
        if self.input_names == DETECTOR.input_names:
            return [
                Detections(*self._run_session(each))
                for each in zip(*(torch.split(value, 1) for value in inputs), strict=True)
            ]
        (scores,) = self._run_session(inputs)
        return scores

    def _run_session(self, given: Sequence[Tensor]) -> list[Tensor]:
        arrays = [value.detach().to("cpu", torch.float32).contiguous().numpy() for value in given]
        try:
            answers = self.session.run(self.output_names, dict(zip(self.input_names, arrays, strict=True)))
        except Exception as error:  # likewise
            first = str(error).partition("\n")[0]
            raise Error(f"ONNX Runtime cannot compute the network ({first[:300]}); export it again") from error
        return [torch.from_numpy(answer) for answer in answers]


def check_model(content: bytes) -> None:
    """Refuse an ONNX file that is more than a network of its own numbers.

    Raises:
        Error: it is damaged; its weights lie in other files (external data); it has operations of other libraries or
            ones that repeat others; or it computes more than 67 million numbers at once, whatever it is given.
    """
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # of protobuf's own class
        raise Error(f"the ONNX file is damaged ({error}): export it again") from None
    known = {*ALLOWED_DOMAINS, *(function.domain for function in model.functions)}
    for graph in (model.graph, *model.functions):
        for node, tensors in _walk_nodes(graph):
            for tensor in tensors:
                if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                    raise Error(
                        f"the ONNX file has the weights {tensor.name[:100]!r} in another file (external data), which "
                        "is not read; export the network again, into one file"
                    )
            if node is not None and (node.domain not in known or node.op_type in LOOP_OPS):
                raise Error(
                    f"the ONNX file has the operation {node.domain[:50]}.{node.op_type[:50]}, which no export of "
                    "fukami has; export the network again"
                )
    largest = _count_largest_tensor(model)
    if largest > max(MAX_TENSOR_ELEMENTS, len(content)):  # the weights of a large layer, turned round
        raise Error(
            f"the ONNX file computes {largest:,} numbers at once, whatever it is given; export the network again"
        )


def _walk_nodes(graph: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Every operation of a graph or a function and of those inside it, each with the tensors that belong to it."""
    sparse = [part for each in getattr(graph, "sparse_initializer", ()) for part in (each.values, each.indices)]
    yield None, [*getattr(graph, "initializer", ()), *sparse]
    for node in graph.node:
        tensors: list[Any] = []
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for each in (attribute.sparse_tensor, *attribute.sparse_tensors):
                tensors += [each.values, each.indices]
            for inner in (attribute.g, *attribute.graphs):
                if inner.ByteSize():
                    yield from _walk_nodes(inner)
        yield node, tensors


def _count_largest_tensor(model: Any) -> int:
    """Numbers in the largest value of a model, as far as its shape does not depend on what the model is given.

    The weights are left out of ``model`` for that, which are as large as the file has them.
    """
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
    except Exception:  # which ONNX Runtime tells in its own words
        return 0
    values = (value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output))
    return max((math.prod(max(side.dim_value, 1) for side in sides) for sides in values), default=0)


def _has_int16_overflow() -> bool:
    """Whether ONNX Runtime's sums of bytes would overflow 16 bits here, as on x86 without VNNI, unless asked not to."""
    able = torch.cpu.get_capabilities()
    return able.get("architecture") == "x86_64" and not (able.get("avx512_vnni") or able.get("avx_vnni"))


def _export_program(network: nn.Module, shape: tuple[int, int, int], form: Signature) -> torch.export.ExportedProgram:
    """The operations of the network; where they cannot be followed, the error names the layer."""
    inside: list[str] = []
    hooks = []
    for name, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: inside.__delitem__(-1)))
    try:
        images, sizes = (
            torch.zeros(form.trace_batch_size, *shape),
            torch.tensor([shape[1:]] * form.trace_batch_size).float(),
        )
        examples = (images, sizes)[: len(form.input_names)]
        free = tuple(dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in form.dynamic_axes)
        return torch.export.export(network, examples, dynamic_shapes=free)
    except Exception as error:  # whatever the layer itself or the tracing raises
        raise _create_export_error(network, inside[-1] if inside else "", str(error)) from error
    finally:
        for hook in hooks:
            hook.remove()


def _find_failing_layer(program: torch.export.ExportedProgram, message: str) -> str:
    """The name of the layer that an exporter's message about the operation ``%name`` speaks of."""
    found = re.search(r"node %(\w+) ", message)
    for node in program.run_decompositions().graph.nodes:
        if found and found[1] in node.name and node.meta.get("nn_module_stack"):
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
    """Nothing of what the exporters say of themselves on the way."""
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
