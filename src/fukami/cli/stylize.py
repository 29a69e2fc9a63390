"""fukami stylize."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from fukami.cli.main import Precision, run_cli
from fukami.errors import Error, UsageError


def command(arguments: list[str]) -> None:
    """Transfer the style of an image to another image."""
    import tyro

    from fukami.style.neural_style import NeuralStyle

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Stylized(NeuralStyle):
        content: tyro.conf.Positional[str] = dataclasses.field()
        """The image that tells what is shown."""
        style: tuple[str, ...] = dataclasses.field()
        """The images that tell how it is painted."""

    def run(
        recipe: Stylized,
        out: Path,
        device: str = "auto",
        precision: Precision = "auto",
        resume: bool = False,
    ) -> None:
        """Change an image until it shows what one image shows, painted as others are; prints a JSON object.

        While it is painted, its run lies in a folder beside it, with the image so far in preview.png. Ctrl-C keeps
        the image so far, and the run, which goes on with --resume.

        Args:
            recipe: The image.
            out: File for the image, .png or .jpg.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: auto takes bfloat16 where it is faster.
            resume: Go on with an image that was interrupted.
        """
        from PIL import Image

        from fukami.engine import train as engine_train

        Image.init()
        if Image.EXTENSION.get(out.suffix.lower()) not in ("PNG", "JPEG", "WEBP", "TIFF"):
            raise UsageError(f"--out should be a .png, .jpg, .webp or .tiff file, not {out}")
        if not out.resolve().parent.is_dir():
            raise UsageError(f"there is no folder {out.parent} for the image; make it, or give another --out")
        if out.resolve() in {Path(file).resolve() for file in (recipe.content, *recipe.style)}:
            raise UsageError(f"--out {out} would overwrite an image that it is made from; give another file")
        folder = out.with_name(f"{out.stem}.run")
        if folder.exists() and not resume:
            raise UsageError(f"{folder} holds an image that was interrupted: go on with --resume, or remove the folder")
        plain = NeuralStyle(**{field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)})
        try:
            begun = (folder / "recipe.json").is_file()
            found = engine_train.train(plain, folder, device=device, precision=precision, resume=begun)
        except (KeyboardInterrupt, SystemExit):
            if _save_preview(folder, out):
                print(f"the image so far is in {out}; --resume goes on with it", file=sys.stderr)
            raise
        except UsageError:  # another process paints there, perhaps
            raise
        except Error:
            if not (folder / "last.ckpt").exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        _save_preview(folder, out)
        shutil.rmtree(folder)
        answer: dict[str, Any] = {"file": plain.content, "style": plain.style, "image": str(out), **found}
        print(json.dumps(answer, ensure_ascii=False))

    run_cli(run, arguments, "fukami stylize")


def _save_preview(folder: Path, out: Path) -> bool:
    """Write the image so far, if there is one."""
    from PIL import Image

    preview = folder / "preview.png"
    if not preview.is_file():
        return False
    with Image.open(preview) as image:
        image.save(out, quality=95)
    return True
