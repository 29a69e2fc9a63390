"""Command ``fukami stylize``."""

import dataclasses
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fukami.cli.arguments import parse_recipe_arguments
from fukami.cli.inputs import format_json_line, is_same_file
from fukami.cli.main import Precision
from fukami.cli.train import list_memory_fixes
from fukami.errors import Error, UsageError, suggest_memory_fixes

if TYPE_CHECKING:
    from fukami.style.neural_style import NeuralStyle


@dataclasses.dataclass(frozen=True, kw_only=True)
class StylizeOptions:
    """Options of ``fukami stylize`` in addition to the fields of the recipe."""

    out: Path
    """Output image file: .png, .jpg, .webp or .tiff."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "auto"
    """Training precision. auto: bfloat16 if it is faster."""
    resume: bool = False
    """Continue an interrupted run."""


def command(arguments: list[str]) -> None:
    """Transfer the style of an image to another image."""
    import tyro

    from fukami.style.neural_style import NeuralStyle

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class StylizeRecipe(NeuralStyle):
        """Optimize an image for the content of one image and the style of others (Gatys et al. 2016).

        During optimization, a run folder next to the output contains preview.png, the image of the last evaluation.
        Ctrl-C saves the current image and keeps the run, which --resume continues. Prints one JSON object.

        Example:
            fukami stylize photograph.jpg --style artwork.jpg --out stylized.png --weights imagenet
        """

        content: tyro.conf.Positional[str] = dataclasses.field()
        """Content image."""
        style: tuple[str, ...] = dataclasses.field()
        """Style images."""

    recipe, options = parse_recipe_arguments(StylizeRecipe, StylizeOptions, arguments, "fukami stylize")
    fields = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    words = [word for word in arguments if word != "--resume"]
    stylize(NeuralStyle(**fields), options, shlex.join(["fukami", "stylize", "--resume", *words]))


def stylize(recipe: "NeuralStyle", options: StylizeOptions, resume_command: str) -> None:
    """Train the recipe in a temporary run folder, and save its image; ``resume_command`` continues it after a stop.

    Raises:
        UsageError: the output file has another format, cannot be created, or would overwrite an input.
    """
    from PIL import Image

    from fukami.engine.run_folder import check_run_exists
    from fukami.engine.train import RunOptions, run_training

    out = options.out
    Image.init()
    if Image.EXTENSION.get(out.suffix.lower()) not in ("PNG", "JPEG", "WEBP", "TIFF"):
        raise UsageError(f"--out should be a .png, .jpg, .webp or .tiff file, not {out}")
    if not out.resolve().parent.is_dir():
        raise UsageError(f"the folder {out.parent} of the image does not exist; create it, or use another --out")
    if any(is_same_file(out, file) for file in (recipe.content, *recipe.style)):
        raise UsageError(f"--out {out} would overwrite an input image; use another file")
    folder = out.with_name(f"{out.stem}.run")
    if folder.exists() and not options.resume:
        raise UsageError(f"{folder} contains an interrupted run; continue it with --resume, or remove the folder")
    if options.resume:
        check_run_exists(folder)
    try:
        run_options = RunOptions(
            options.device, options.precision, compile=False, resume=options.resume, resume_command=resume_command
        )
        with suggest_memory_fixes(*list_memory_fixes(recipe)):
            metrics = run_training(recipe, folder, run_options)
    except (KeyboardInterrupt, SystemExit):
        if (folder / "weights.safetensors").is_file():
            _save_image(recipe, folder, out)
            print(f"{out} contains the current image", file=sys.stderr)
        raise
    except UsageError:  # another process may use the run
        raise
    except Error:
        if not (options.resume or (folder / "last.ckpt").exists()):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    _save_image(recipe, folder, out)
    shutil.rmtree(folder)
    result = {"file": recipe.content, "style": recipe.style, "image": str(out), **metrics}
    print(format_json_line(result))


def _save_image(recipe: "NeuralStyle", folder: Path, out: Path) -> None:
    """Save the image of a run's last checkpoint to ``out``."""
    from fukami.engine.load_run import load_task
    from fukami.style.task import StyleTransferTask

    task = load_task(folder, device="cpu")
    assert isinstance(task, StyleTransferTask)
    task.content_image = recipe.load_images().content  # has the colors, with --colors content
    task.render_image().save(out, quality=95)
