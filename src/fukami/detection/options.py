"""Options of a detector's predictions; the task of detection is imported only if one is set."""

from collections.abc import Iterator
from contextlib import contextmanager

from fukami.engine.task import Task
from fukami.errors import UsageError

MIN_TILE_SIZE = 32  # pixels


def set_detection_options(task: Task, *, confidence: float | None = None, tile_size: int = 0) -> None:
    """Set options of the predictions of any task.

    Args:
        task: the task.
        confidence: minimum score of a predicted box, 0 to 1; None keeps that of the run.
        tile_size: side of the overlapping tiles in which larger images are predicted, in their pixels; 0: no tiles.

    Raises:
        UsageError: the task predicts no boxes, or a value is out of range.
    """
    if confidence is None and not tile_size:
        return
    from fukami.detection.task import DetectionTask

    if not isinstance(task, DetectionTask):
        raise UsageError(f"{type(task).__name__} predicts no boxes; omit --confidence and --tiles")
    if confidence is not None:
        if not 0 <= confidence <= 1:
            raise UsageError(f"--confidence should be a score between 0 and 1, not {confidence:g}")
        task.confidence = confidence
    if tile_size:
        if tile_size < MIN_TILE_SIZE:
            raise UsageError(f"--tiles should be a side of at least {MIN_TILE_SIZE} pixels, or 0, not {tile_size}")
        task.tile_size = tile_size


@contextmanager
def use_confidence(task: Task, confidence: float | None) -> Iterator[None]:
    """Set the minimum score of a predicted box within the context; None keeps that of the task.

    Raises:
        UsageError: the task predicts no boxes, or the score is out of range.
    """
    previous = getattr(task, "confidence", None)
    set_detection_options(task, confidence=confidence)
    try:
        yield
    finally:
        if confidence is not None:
            task.confidence = previous  # type: ignore[attr-defined]
