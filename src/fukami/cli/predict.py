"""fukami predict."""

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fukami.cli.inputs import OutputFolder, format_json_line, split_runs_and_files
from fukami.cli.main import InferencePrecision, run_cli
from fukami.errors import Error, UsageError, convert_memory_errors

if TYPE_CHECKING:
    from fukami.cli.prediction_page import PredictionPage
    from fukami.engine.task import Task
    from fukami.image.video import Frame


@dataclass(frozen=True)
class GenerationOptions:
    """Images that a generator makes."""

    num_samples: int = 0
    """Make so many images, and a grid of them."""
    seed: int = 0
    """Which ones: the same seed makes the same images."""
    interpolation_steps: int = 0
    """Also so many images on the way from each one to the next."""
    arithmetic: str = ""
    """Also the sum of means of samples, by their numbers, such as '1 2 3 - 4 5 6 + 7 8 9'."""
    nearest: bool = False
    """Also the nearest images that were learned from beside each one."""


NO_GENERATION = GenerationOptions()
IMAGE_BATCH_SIZE, FRAME_BATCH_SIZE = 256, 8  # that are answered for at a time; frames are in memory


def command(arguments: list[str]) -> None:
    """Predict for images and videos, or generate images."""
    import tyro

    def run(
        inputs: tyro.conf.Positional[tuple[str, ...]],
        out: Path | None = None,
        frame_interval: int = 1,
        fps: float = 0.0,
        device: str = "auto",
        precision: InferencePrecision = "auto",
        vote: bool = False,
        views: int = 1,
        set: tuple[str, ...] = (),
        recipe: Path | None = None,
        generation: GenerationOptions = NO_GENERATION,
    ) -> None:
        """Answer for each image, and for each frame of a video; prints one JSON object for each.

        A run of a generator makes images instead: fukami predict RUN --num-samples 64 --out DIR.

        Args:
            inputs: First the runs (folders, or names of shipped weights; several are an ensemble), then the images,
                videos, and folders of them.
            out: Folder for drawn answers and a page of them.
            frame_interval: Of a video, answer for every so many frames.
            fps: The images are the frames of one film, so many a second; they are drawn as a video.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: What is computed, and with how many bits. auto: float32, or what the run was exported to.
            vote: The majority of the runs decides, and not the average of their probabilities.
            views: Test-time augmentation: answers are averaged over so many views of each image.
            set: Fields of the recipe that decide how it answers, such as beam_size=3.
            recipe: File of the private recipe that the run was trained with; code is never taken from a run.
            generation: Images that a generator makes.
        """
        from fukami.cli.prediction_page import PredictionPage
        from fukami.engine import checkpoint
        from fukami.image import video

        if generation.num_samples:
            _generate_images(inputs, generation, out, device, precision, recipe)
            return
        if generation.interpolation_steps or generation.arithmetic or generation.nearest:
            raise UsageError(
                "--interpolation-steps, --arithmetic and --nearest are about images made: give --num-samples, too"
            )
        if frame_interval < 1:
            raise UsageError(f"--frame-interval should be a whole number from 1 on, not {frame_interval}")
        if not 0 <= fps <= 1000:
            raise UsageError(f"--fps should be frames a second, up to 1000, not {fps:g}")
        runs, files = split_runs_and_files(inputs)
        changed = checkpoint.parse_run_overrides(runs, set, recipe)
        task = checkpoint.load(
            *runs, device=device, precision=precision, vote=vote, overrides=changed, recipe=recipe
        ).with_views(views)
        failed = 0
        with PredictionPage(out, task, files) as page:
            for films, group in itertools.groupby(files, video.is_video):
                if films:
                    for file in group:
                        failed += _predict_video(task, file, video.read_frames(file, frame_interval), page)
                elif fps:
                    images = list(group)
                    name = Path(images[0]).resolve().parent.name or "film"
                    broken: list[Error] = []
                    failed += _predict_video(task, name, video.read_image_sequence(images, fps, broken), page)
                    failed += len(broken)
                    for error in broken:
                        print(f"fukami: {error}", file=sys.stderr)
                else:
                    failed += _predict_images(task, list(group), page)
        if failed:
            raise Error(f"{failed} of {len(files)} files could not be answered")

    run_cli(run, arguments, "fukami predict")


def _generate_images(
    runs: Sequence[str], wanted: GenerationOptions, out: Path | None, device: str, precision: str, source: Path | None
) -> None:
    """Make images, write them to the folder ``out``, and print an answer for each."""
    from fukami.engine import checkpoint
    from fukami.engine.recipe import check_data
    from fukami.generation import samples as generation_samples
    from fukami.generation.task import GANTask

    if len(runs) != 1:
        raise UsageError(
            f"--num-samples makes images with one run and of no files; give one run, not {len(runs)} words"
        )
    if wanted.num_samples < 1 or (
        wanted.interpolation_steps and (wanted.interpolation_steps < 2 or wanted.num_samples < 2)
    ):
        raise UsageError(
            "--num-samples should be 1 or more; --interpolation-steps 2 or more, between at least 2 images"
        )
    if out is None:
        raise UsageError("give a folder for the images with --out")
    task = checkpoint.load(runs[0], device=device, precision=precision, recipe=source)
    if not isinstance(task, GANTask):
        raise UsageError(f"{runs[0]} answers for images and makes none; leave out --num-samples, and give files")
    terms = generation_samples.parse_arithmetic(wanted.arithmetic, wanted.num_samples) if wanted.arithmetic else []
    folder = OutputFolder(out, ()).folder
    codes = task.sample_latents(wanted.num_samples, wanted.seed)
    images, answers = generation_samples.write_samples(task, codes, wanted.seed, folder)
    if wanted.interpolation_steps:
        generation_samples.write_interpolation(task, codes, wanted.interpolation_steps, folder)
    if terms:
        generation_samples.write_arithmetic(task, codes, terms, folder)
    if wanted.nearest:
        recipe, _ = checkpoint.read_recipe(checkpoint.locate_run(runs[0]), source)
        check_data(recipe)
        found = generation_samples.write_nearest_images(
            images, recipe.load_data().train, task.load_feature_extractor(), task.runtime.device, folder
        )
        answers = [{**answer, **own} for answer, own in zip(answers, found, strict=True)]
    for answer in answers:
        print(format_json_line(answer), flush=True)
    print(f"{folder / 'grid.png'} shows all of them", file=sys.stderr)


def _predict_images(task: "Task", files: Sequence[str], page: "PredictionPage") -> int:
    """Answer for images; returns how many could not be read or drawn."""
    failed = 0
    for at in range(0, len(files), IMAGE_BATCH_SIZE):
        for answer in task.predict(files[at : at + IMAGE_BATCH_SIZE]):
            if "error" in answer:
                failed += 1
                print(f"fukami: {answer['error']}", file=sys.stderr)
            else:
                print(format_json_line(answer), flush=True)
                try:
                    with convert_memory_errors(answer["file"]):
                        page.add(answer)
                except UsageError:
                    raise
                except Error as error:
                    failed += 1
                    print(f"fukami: {error}", file=sys.stderr)
    return failed


def _predict_video(task: "Task", file: str, frames: "Iterator[Frame]", page: "PredictionPage") -> int:
    """Answer for the frames of a film, and tell how many a second; returns 1 if one could not be answered."""
    from fukami.image import video

    failed, count, spent, began = 0, 0, 0.0, time.perf_counter()
    chunks = video.batch_frames(frames, FRAME_BATCH_SIZE)
    with page.record_video(file) as show:
        while True:
            try:
                some = next(chunks, [])
            except Error as error:
                print(f"fukami: {error}", file=sys.stderr)
                return 1
            if not some:
                break
            asked = time.perf_counter()
            answers = task.predict([frame.image for frame in some])
            spent += time.perf_counter() - asked
            count += len(some)
            for frame, answer in zip(some, answers, strict=True):
                if "error" in answer:
                    failed = 1
                    print(f"fukami: {file}, frame {frame.index}: {answer['error']}", file=sys.stderr)
                else:
                    about = {"file": frame.file or file, "frame": frame.index, "seconds": round(frame.timestamp, 6)}
                    print(format_json_line({**about, **answer}), flush=True)
                    show(frame, answer)
    if count:
        whole = time.perf_counter() - began
        rates = f"{count / spent:.1f} frames a second, {count / whole:.1f} with reading and drawing"
        print(f"{file}: {count} frames answered at {rates}", file=sys.stderr)
    return failed
