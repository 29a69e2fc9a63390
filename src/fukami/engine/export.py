"""Export of a run (``fukami export``) to a lower precision or to ONNX."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from torch import nn

from fukami import atomic_file
from fukami.engine import precision, run_folder, run_record, run_weights
from fukami.engine.load_run import load_task
from fukami.engine.runtime import PRECISIONS
from fukami.errors import UsageError, build_unknown_error
from fukami.progress import Waiting

ExportSummary = TypedDict(
    "ExportSummary", {"run": str, "from": str, "to": str, "file": str, "bytes": int, "compression_ratio": float}
)


def export_run(
    run: str | Path,
    to: str,
    out: Path,
    calibration: str | None = None,
    recipe: run_record.RecipeSource | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ExportSummary:
    """Export the run to the precision ``to``, as a new run in the folder ``out``.

    Args:
        run: a folder, or the name of bundled weights.
        to: ``float32``, ``bfloat16``, ``float16``, ``int8``, ``binary`` or ``onnx``.
        out: a new or empty folder; it becomes a run when all files are written.
        calibration: dataset to calibrate int8 with, a name or a path; by default the training set.
        recipe: the file (or class) of the run's custom recipe.
        overrides: new values of recipe fields by name, such as the file of a custom game.

    Returns:
        ``run``, ``from``, ``to``, ``file``, its ``bytes``, and ``compression_ratio``: the bytes of the float32 weights
        over those of the exported files.

    Raises:
        UsageError: there is no such run, or it is exported already; the precision is unknown; ``out`` is not empty.
        Error: a layer cannot be converted; the message names it and the reason.
    """
    source, out = run_folder.locate_unconverted_run(run), Path(out)
    if to not in (*PRECISIONS, *precision.CONVERTED_PRECISIONS):
        raise build_unknown_error("precision", to, (*PRECISIONS, *precision.CONVERTED_PRECISIONS))
    if calibration is not None and to != "int8":
        raise UsageError(f"{to} needs no calibration; omit --calibration, or export to int8")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} exists and is not empty; use another --out")
    experiment, labels = run_record.read_recipe(source, recipe)
    experiment = dataclasses.replace(experiment, **(overrides or {}))
    task = load_task(run, device="cpu", precision="float32", overrides=overrides, recipe=recipe)
    before = task.get_modules()
    with Waiting(f"exporting {run} to {to}"):
        modules = before if to in PRECISIONS else precision.convert_task(task, to, experiment, calibration)
    with run_folder.lock_run(out, experiment, resume=False):
        if to in precision.ONNX_PRECISIONS:
            from fukami.quantization.onnx_export import OnnxNetwork

            files = [out / f"{name}.onnx" for name in modules]
            for file, module in zip(files, modules.values(), strict=True):
                assert isinstance(module, OnnxNetwork)
                atomic_file.write_file(file, module.content)
        else:
            files = [out / "weights.safetensors"]
            run_weights.write_weights(out, run_weights.copy_tensors_to_cpu(modules), PRECISIONS.get(to))
        run_record.write_recipe(out, experiment, labels, {"exported": {"to": to, "from": str(run)}})
    size = sum(file.stat().st_size for file in files)
    ratio = round(sum(map(_count_bytes, before.values())) / size, 2)
    return {
        "run": str(out), "from": str(run), "to": to, "file": str(files[0]), "bytes": size, "compression_ratio": ratio
    }  # fmt: skip


def _count_bytes(module: nn.Module) -> int:
    """Count the bytes of a network's parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())
