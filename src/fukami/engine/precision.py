"""Conversion of a task to lower precision, for ``--precision`` and ``fukami export``."""

import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.data.loader import Loader
from fukami.engine.recipe import Recipe, check_data
from fukami.engine.resumable_loader import wrap_batches
from fukami.engine.runtime import PRECISIONS
from fukami.engine.task import Batch, Task
from fukami.errors import Error, UsageError, build_unknown_error
from fukami.quantization.half_precision import has_native_arithmetic

PrepareInputs = Callable[[Batch], Tensor]
CONVERTED_PRECISIONS = ("int8", "binary", "onnx")  # these replace layers; the others only change the dtype
ONNX_PRECISIONS = ("int8", "onnx")  # computed by ONNX Runtime, on the CPU
NUM_CALIBRATION_IMAGES = 512  # images that calibrate the ranges of the activations
SHIFT_THRESHOLD = 0.5  # difference of the means, in standard deviations, above which two sets of images differ
COMPARED_STATISTICS = ("brightness", "contrast", "detail")  # image statistics that are compared


def convert_task(task: Task, precision: str, recipe: Recipe, calibration: str | None = None) -> dict[str, nn.Module]:
    """Convert the modules of a task to ``int8``, ``binary`` or ``onnx``; the task itself is not changed.

    Args:
        task: a loaded task, in float32.
        precision: one of :data:`CONVERTED_PRECISIONS`.
        recipe: the task's recipe; its training data calibrate int8.
        calibration: another dataset to calibrate with, a name or a path.

    Raises:
        UsageError: the run needs no calibration, or int8 is requested for a task other than classification.
        Error: a layer cannot be converted; the message names it.
    """
    quantization_aware = getattr(recipe, "quantize", "none") == "int8"
    if precision == "onnx" and quantization_aware:
        raise Error("the run was trained with int8 quantization, whose export is an ONNX file, too: export it to int8")
    if precision == "binary":
        from fukami.quantization.binary_layers import pack_model

        return {name: pack_model(module) for name, module in task.get_modules().items()}
    if quantization_aware and calibration is not None:
        raise UsageError("the run was trained with int8 quantization and needs no calibration; omit --calibration")
    from fukami.quantization import int8, onnx_export

    kind, shape, metadata, prepare_inputs = task.get_signature()
    if precision == "onnx":
        encode = partial(
            onnx_export.export_onnx, shape=shape, metadata=metadata, signature=onnx_export.SIGNATURES[kind]
        )
    elif prepare_inputs is None:
        raise UsageError(f"int8 is for classifiers; export a {kind} to float16, bfloat16 or onnx")
    elif quantization_aware:
        encode = partial(int8.export_int8, shape=shape, metadata=metadata)
    else:
        images = _load_calibration_images(prepare_inputs, recipe, calibration)
        encode = partial(int8.quantize, shape=shape, images=images, metadata=metadata)
    return {name: onnx_export.OnnxNetwork(encode(module)) for name, module in task.get_modules().items()}


def describe_dtypes(precision: str, device: torch.device) -> dict[str, str]:
    """Return the dtypes of weights, activations and accumulators on a device; half precision is tested by a sum."""
    if precision == "binary":
        note = "first and last layer are float32 unless the recipe binarizes them"
        return {"weights": "1 bit", "activations": "1 bit", "accumulators": "integer", "note": note}
    if precision == "int8":
        return {"weights": "int8", "activations": "uint8", "accumulators": "int32"}
    dtype = PRECISIONS.get(precision, torch.float32)
    name = str(dtype).removeprefix("torch.")
    dtypes = {"weights": name, "activations": name}
    if not has_native_arithmetic(dtype, device):
        note = f"no native {name} arithmetic on this device: layers compute in float32 and round"
        return dtypes | {"accumulators": "float32", "note": note}
    return dtypes | {"accumulators": "float32" if _accumulates_in_float32(dtype, device) else name}


def _accumulates_in_float32(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a convolution over 4,096 ones is 4,096: float16 sums stop at 2,048, bfloat16 sums at 256."""
    ones = torch.ones(1, 4096, 1, 1, dtype=dtype, device=device)
    return bool(F.conv2d(ones, ones) == 4096)


def _load_calibration_images(prepare_inputs: PrepareInputs, recipe: Recipe, spec: str | None) -> list[Tensor]:
    """Load network inputs of :data:`NUM_CALIBRATION_IMAGES` training images, of the dataset ``spec`` or the recipe's.

    The images are not augmented. A warning is logged if those of ``spec`` differ from the recipe's.
    """
    fields = {field.name for field in dataclasses.fields(recipe)}
    changes: dict[str, Any] = {"augment": ()} if "augment" in fields else {}
    plain = dataclasses.replace(recipe, **changes)
    if spec is None:
        check_data(plain)
        return list(_iterate_inputs(prepare_inputs, wrap_batches(plain.load_data().train)))
    changes |= {name: value for name, value in (("data", spec), ("images", ""), ("annotations", "")) if name in fields}
    calibration_recipe = dataclasses.replace(recipe, **changes)
    images = list(_iterate_inputs(prepare_inputs, wrap_batches(calibration_recipe.load_data().train)))
    if not images:
        raise Error(f"{spec} has no training images for the calibration; use a dataset that has some")
    logger = logging.getLogger("fukami")
    try:
        check_data(plain)
        reference = list(_iterate_inputs(prepare_inputs, wrap_batches(plain.load_data().train)))
    except Error as error:
        logger.warning("cannot compare the calibration data with the training data, which are not available: %s", error)
        return images
    for difference in compare_image_statistics(torch.cat(images), torch.cat(reference)):
        logger.warning("the calibration data %s differ from the training data: %s", spec, difference)
    return images


def _iterate_inputs(prepare_inputs: PrepareInputs, train: Loader) -> Iterator[Tensor]:
    """Iterate over batches of network inputs, :data:`NUM_CALIBRATION_IMAGES` images at most."""
    count = 0
    for batch in itertools.islice(train, len(train)):
        inputs = prepare_inputs(batch)[: NUM_CALIBRATION_IMAGES - count]
        count += len(inputs)
        yield inputs
        if count >= NUM_CALIBRATION_IMAGES:
            return


def compare_image_statistics(images: Tensor, reference: Tensor) -> Iterator[str]:
    """Describe the statistics in which images ``(N, C, H, W)`` differ from the reference by :data:`SHIFT_THRESHOLD`."""
    for name, values, reference_values in zip(
        COMPARED_STATISTICS, _compute_image_statistics(images), _compute_image_statistics(reference), strict=True
    ):
        deviation = max(float(reference_values.std()), 1e-6)
        distance = float(values.mean() - reference_values.mean()) / deviation
        if abs(distance) > SHIFT_THRESHOLD:
            more = "more" if distance > 0 else "less"
            yield f"{abs(distance):.1f} standard deviations {more} {name}"


def _compute_image_statistics(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute brightness, contrast and detail of each image, ``(N,)``.

    These are the mean, the standard deviation, and the mean absolute difference of horizontal neighbors.
    """
    images = images.float()
    detail = (images[..., 1:] - images[..., :-1]).abs().flatten(1).mean(1)
    return images.flatten(1).mean(1), images.flatten(1).std(1), detail


def resolve_precision(precision: str, stored_precision: str, run: str | os.PathLike[str]) -> str:
    """Return the precision at which to compute a run; ``auto`` is its stored precision.

    Raises:
        UsageError: the precision is unknown, or the exported run cannot be converted to it.
    """
    valid = ("auto", *PRECISIONS, *CONVERTED_PRECISIONS)
    if precision not in valid:
        raise build_unknown_error("precision", precision, valid)
    if stored_precision in CONVERTED_PRECISIONS and precision not in ("auto", stored_precision):
        raise UsageError(
            f"{run} was exported to {stored_precision} and cannot be computed in {precision}; use the run that it was "
            "exported from"
        )
    return stored_precision if precision == "auto" else precision


def resolve_device_and_precision(device: str, precision: str) -> tuple[str, str]:
    """Return the device and the dtype name of a precision.

    Raises:
        UsageError: the precision is not available on this device.
    """
    if precision in ONNX_PRECISIONS and device not in ("auto", "cpu"):
        raise UsageError(f"{precision} is computed on the CPU, by ONNX Runtime, not on {device}; use --device cpu")
    return ("cpu" if precision in ONNX_PRECISIONS else device), (precision if precision in PRECISIONS else "float32")
