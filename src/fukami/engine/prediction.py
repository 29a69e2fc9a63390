"""The prediction loop of all tasks: read images, predict in batches, collect errors."""

import math
import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from PIL.Image import Image
from torch import Tensor

from fukami.errors import Error, MissingPackageError, UsageError, convert_memory_errors, is_out_of_memory
from fukami.image import io as image_io
from fukami.image.channels import ArrayImage, ChannelSource, DecodedImage, build_preview, read_channels

if TYPE_CHECKING:
    from fukami.engine.task import Task

Prediction: TypeAlias = dict[str, Any]  # ready for JSON
MAX_CHUNK_PIXELS = 2**26  # pixels of decoded and of prepared images that are in memory at a time


class LoadedInput(NamedTuple):
    """Decoded input of a prediction.

    Attributes:
        name: path of the file; empty for an image in memory.
        image: the image, upright; None if it cannot be read.
        tensor: the element of the prediction batch, ``(C, H, W)``; None if there is an error.
        error: why the input cannot be predicted.
    """

    name: str
    image: DecodedImage | None = None
    tensor: Tensor | None = None
    error: str = ""


def iterate_predictions(
    task: "Task", inputs: Iterable[ChannelSource], *, keep_images: bool = False
) -> Iterator[tuple[Image | None, Prediction]]:
    """Iterate over the decoded image and the prediction of each input.

    Each file is decoded once. An input that cannot be read yields ``{"file", "error"}``, without ``file`` for an image
    in memory.

    Args:
        task: the task.
        inputs: the images.
        keep_images: return the decoded images in mode L or RGB, to draw the predictions on; otherwise None.
    """
    sources = iter(inputs)
    while chunk := _load_chunk(task, sources, keep_images):
        for shape, group in groupby(
            chunk, lambda item: None if item.tensor is None else (item.tensor.shape, item.tensor.dtype)
        ):
            items = list(group)
            results = [{"error": item.error} for item in items] if shape is None else _predict_group(task, items)
            for item, result in zip(items, results, strict=True):
                image = None if item.image is None else build_preview(item.image)
                yield image, add_file(result, item.name) if item.name else result


def add_file(prediction: Prediction, name: str) -> Prediction:
    """Insert the name of the file as the first item, in place, since a prediction may be a subclass of dict."""
    items = {"file": name, **prediction}
    prediction.clear()
    prediction.update(items)
    return prediction


def _load_chunk(task: "Task", sources: Iterator[ChannelSource], keep_images: bool) -> list[LoadedInput]:
    """Load the next inputs, at most a batch of them."""
    chunk: list[LoadedInput] = []
    num_pixels = 0
    for source in sources:
        loaded = load_input(task, source)
        chunk.append(loaded if keep_images else loaded._replace(image=None))
        image, tensor = chunk[-1].image, loaded.tensor
        num_pixels += (image.width * image.height if image else 0) + (tensor[0].numel() if tensor is not None else 0)
        if len(chunk) == task.predict_batch_size or num_pixels >= MAX_CHUNK_PIXELS:
            break
    return chunk


def load_input(task: "Task", source: ChannelSource) -> LoadedInput:
    """Decode an input and prepare it for the network, or return the error."""
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    try:
        image = read_input(task, source)
    except MissingPackageError:
        raise
    except Error as error:
        return LoadedInput(name, error=str(error))
    try:
        with convert_memory_errors(name or "the input image"):
            try:
                return LoadedInput(name, image, task.prepare_image(image))
            except UsageError:
                raise
            except Error as error:
                return LoadedInput(name, error=f"{name}: {error}" if name else str(error))
    except UsageError:  # the task predicts no image
        raise
    except Error as error:
        return LoadedInput(name, error=str(error))


def read_input(task: "Task", source: ChannelSource) -> DecodedImage:
    """Read an image with the channels of the task's preprocessing; without one, in mode L or RGB.

    Raises:
        Error: the image cannot be read, or has another number of channels.
    """
    if task.transform is not None:
        return read_channels(source, task.transform.channels)
    return image_io.read_image(source.build_preview() if isinstance(source, ArrayImage) else source)


def _predict_group(task: "Task", items: list[LoadedInput]) -> list[Prediction]:
    """Predict inputs of one shape in one batch, or one by one if the batch fails; an input that fails has an error."""
    try:
        images = torch.stack([item.tensor for item in items if item.tensor is not None])
        with torch.inference_mode(), task.evaluation_mode():
            predictions = task.predict_batch(images)
    except UsageError:  # of the task, not of an input
        raise
    except Exception as error:
        if is_out_of_memory(error):
            message = "the image needs more memory than is available; make it smaller"
        elif isinstance(error, Error):
            message = str(error)
        else:
            raise
    else:
        message = "the output of the network is not finite: the image has too large values, or the weights are damaged"
        pairs = zip(items, predictions, strict=True)
        return [prediction if _is_finite(prediction) else _build_error(item, message) for item, prediction in pairs]
    if len(items) > 1:
        return [prediction for item in items for prediction in _predict_group(task, [item])]
    return [_build_error(items[0], message)]


def _build_error(item: LoadedInput, message: str) -> Prediction:
    return {"error": f"{item.name}: {message}" if item.name else message}


def _is_finite(value: object) -> bool:
    """Return whether all numbers of a prediction are finite; JSON has no others."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
