"""A task at fewer bits: what ``--precision`` computes and ``fukami export`` writes."""

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.engine.recipe import Recipe, check_data
from fukami.engine.runtime import PRECISIONS
from fukami.engine.task import Task
from fukami.errors import Error, UsageError, build_unknown_error
from fukami.quantization.half_precision import has_native_arithmetic

CONVERTED_PRECISIONS = ("int8", "binary", "onnx")  # other layers than the network's; the rest are types of its numbers
ONNX_PRECISIONS = ("int8", "onnx")  # computed by ONNX Runtime, on the CPU
NUM_CALIBRATION_IMAGES = 512  # images from which the ranges of the activations are taken
SHIFT_THRESHOLD = 0.5  # standard deviations between the means of two sets of images from which they do not look alike
COMPARED_STATISTICS = ("brightness", "contrast", "detail")  # in which images are compared


def convert_task(task: Task, precision: str, recipe: Recipe, calibration: str | None = None) -> dict[str, nn.Module]:
    """The modules of the task at ``int8``, ``binary`` or ``onnx``; the task itself is left as it is.

    Args:
        task: loaded, in float32.
        precision: one of :data:`CONVERTED_PRECISIONS`.
        recipe: of the task; its training data calibrate int8.
        calibration: other data to calibrate with, a name or a path.

    Raises:
        UsageError: there is nothing to calibrate, or int8 is asked for of what is no classifier.
        Error: a layer cannot be computed so; it is named.
    """
    aware = getattr(recipe, "quantize", "none") == "int8"
    if precision == "onnx" and aware:
        raise Error("the run was trained with the roundings of int8, which are ONNX, too: export it to int8")
    if precision == "binary":
        from fukami.quantization.binary_layers import pack_model

        return {name: pack_model(module) for name, module in task.get_modules().items()}
    if aware and calibration is not None:
        raise UsageError("the run was trained with the ranges of int8, so nothing is to calibrate; leave it out")
    from fukami.quantization import int8, onnx_export

    form, shape, about = task.get_signature()
    if precision != "onnx" and form != "classifier":
        raise UsageError(f"int8 is for classifiers; export a {form} to float16, bfloat16 or onnx")
    if precision == "onnx":
        encode = partial(onnx_export.export_onnx, shape=shape, metadata=about, signature=onnx_export.SIGNATURES[form])
    elif aware:
        encode = partial(int8.export_int8, shape=shape, metadata=about)
    else:
        images = _load_calibration_images(task, recipe, calibration)
        encode = partial(int8.quantize, shape=shape, images=images, metadata=about)
    return {name: onnx_export.OnnxNetwork(encode(module)) for name, module in task.get_modules().items()}


def describe_dtypes(precision: str, device: torch.device) -> dict[str, str]:
    """In which types weights, activations and sums are held here: the sums of halves are found by adding."""
    if precision == "binary":
        ends = "first and last layer float32 unless the run says otherwise"
        return {"weights": "1 bit", "activations": "1 bit", "sums": "whole numbers", "note": ends}
    if precision == "int8":
        return {"weights": "int8", "activations": "uint8", "sums": "int32"}
    dtype = PRECISIONS.get(precision, torch.float32)
    name = str(dtype).removeprefix("torch.")
    found = {"weights": name, "activations": name}
    if not has_native_arithmetic(dtype, device):
        note = f"no arithmetic for {name} here: layers compute in float32, and round"
        return found | {"sums": "float32", "note": note}
    return found | {"sums": "float32" if _accumulates_in_float32(dtype, device) else name}


def _accumulates_in_float32(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a convolution over 4,096 ones gives 4,096: sums of halves stop at 2,048, of bfloat16 at 256."""
    ones = torch.ones(1, 4096, 1, 1, dtype=dtype, device=device)
    return bool(F.conv2d(ones, ones) == 4096)


def _load_calibration_images(task: Task, recipe: Recipe, spec: str | None) -> list[Tensor]:
    """What the network is given for :data:`NUM_CALIBRATION_IMAGES` images to train on, unaugmented, or for others."""
    fields = {field.name for field in dataclasses.fields(recipe)}
    changes: dict[str, Any] = {"augment": ()} if "augment" in fields else {}
    plain = dataclasses.replace(recipe, **changes)
    if spec is None:
        check_data(plain)
        return list(_iterate_inputs(task, plain.load_data().train))
    changes["data"] = spec
    other = dataclasses.replace(recipe, **changes)
    given = list(_iterate_inputs(task, other.load_data().train))
    logger = logging.getLogger("fukami")
    try:
        check_data(plain)
        usual = list(_iterate_inputs(task, plain.load_data().train))
    except Error as error:
        logger.warning("the calibration data cannot be compared with the training data, which are not here: %s", error)
        return given
    for what in compare_image_statistics(torch.cat(given), torch.cat(usual)):
        logger.warning("the calibration data %s do not look like the training data: %s", spec, what)
    return given


def _iterate_inputs(task: Task, train: Any) -> Iterator[Tensor]:
    """Batches of what the network is given, until there are enough."""
    count = 0
    for batch in itertools.islice(train, len(train)):
        inputs = task.prepare_inputs(batch)[: NUM_CALIBRATION_IMAGES - count]
        count += len(inputs)
        yield inputs
        if count >= NUM_CALIBRATION_IMAGES:
            return


def compare_image_statistics(images: Tensor, reference: Tensor) -> Iterator[str]:
    """In what images ``(N, C, H, W)`` differ from the usual ones by more than half a standard deviation."""
    for name, one, other in zip(
        COMPARED_STATISTICS, _compute_image_statistics(images), _compute_image_statistics(reference), strict=True
    ):
        spread = max(float(other.std()), 1e-6)
        distance = float(one.mean() - other.mean()) / spread
        if abs(distance) > SHIFT_THRESHOLD:
            more = "more" if distance > 0 else "less"
            yield f"they have {abs(distance):.1f} standard deviations {more} {name}"


def _compute_image_statistics(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Brightness, contrast and detail of each image, ``(N,)``: mean, deviation, and difference of neighbours."""
    images = images.float()
    across = (images[..., 1:] - images[..., :-1]).abs().flatten(1).mean(1)
    return images.flatten(1).mean(1), images.flatten(1).std(1), across


def resolve_precision(precision: str, own: str, run: Any) -> str:
    """The precision at which to compute a run that was exported to ``own``; ``auto`` is its own.

    Raises:
        UsageError: there is no such precision, or the run has no numbers for it.
    """
    valid = ("auto", *PRECISIONS, *CONVERTED_PRECISIONS)
    if precision not in valid:
        raise build_unknown_error("precision", precision, valid)
    if own in CONVERTED_PRECISIONS and precision not in ("auto", own):
        raise UsageError(f"{run} was exported to {own} and is computed so, not in {precision}; give the run it is of")
    return own if precision == "auto" else precision


def resolve_device_and_precision(device: str, precision: str) -> tuple[str, str]:
    """The device and the type of the numbers that are computed with at a precision.

    Raises:
        UsageError: it is not computed on this device.
    """
    if precision in ONNX_PRECISIONS and device not in ("auto", "cpu"):
        raise UsageError(
            f"{precision} is computed on the CPU, by ONNX Runtime, and not on {device}; leave out --device"
        )
    return ("cpu" if precision in ONNX_PRECISIONS else device), (precision if precision in PRECISIONS else "float32")
