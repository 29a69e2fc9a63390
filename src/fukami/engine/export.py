"""``fukami export``: a run as a run of fewer bits, or for another program."""

from pathlib import Path
from typing import Any

from torch import nn

from fukami.engine import checkpoint, precision
from fukami.engine.runtime import PRECISIONS
from fukami.errors import UsageError


def export_run(
    run: str | Path,
    to: str,
    out: Path,
    calibration: str | None = None,
    recipe: checkpoint.RecipeSource | None = None,
) -> dict[str, Any]:
    """Write the run at the precision ``to`` into the folder ``out``; it is a run like any other.

    Args:
        run: a folder, or the name of weights that ship with the package.
        to: ``float32``, ``bfloat16``, ``float16``, ``int8``, ``binary`` or ``onnx``.
        out: new or empty; it becomes a run once all is written.
        calibration: data to calibrate int8 with, a name or a path; by default those of the training.
        recipe: the file (or class) of the private recipe that the run was trained with.

    Returns:
        ``run``, ``from``, ``to``, ``file``, its ``bytes``, and how many times ``smaller`` it is than float32's numbers.

    Raises:
        UsageError: there is no such run, or it was exported already; ``out`` is in use.
        Error: a layer cannot be computed so; it is named, with the reason.
    """
    source = checkpoint.locate_unconverted_run(run)
    if calibration is not None and to != "int8":
        raise UsageError(f"{to} needs no calibration; leave out --calibration, or export to int8")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} exists and is not empty; give another --out")
    experiment, labels = checkpoint.read_recipe(source, recipe)
    task = checkpoint.load(run, device="cpu", precision="float32", recipe=recipe)
    before = task.get_modules()
    modules = before if to in PRECISIONS else precision.convert_task(task, to, experiment, calibration)
    with checkpoint.lock_run(out, experiment, resume=False):
        if to in precision.ONNX_PRECISIONS:
            files = [out / f"{name}.onnx" for name in modules]
            for file, module in zip(files, modules.values(), strict=True):
                checkpoint.write_file(file, module.content)  # type: ignore[arg-type]  # of an OnnxNetwork
        else:
            files = [out / "weights.safetensors"]
            checkpoint.write_weights(out, checkpoint.copy_tensors_to_cpu(modules), PRECISIONS.get(to))
        checkpoint.write_recipe(out, experiment, labels, {"exported": {"to": to, "from": str(run)}})
    size = sum(file.stat().st_size for file in files)
    facts = {"run": str(out), "from": str(run), "to": to, "file": str(files[0]), "bytes": size}
    return facts | {"smaller": round(sum(map(_count_bytes, before.values())) / size, 2)}


def _count_bytes(module: nn.Module) -> int:
    """What the numbers of a network in float32 take."""
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())
