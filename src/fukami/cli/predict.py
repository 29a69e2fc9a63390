"""Command ``fukami predict``."""

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fukami.cli.arguments import run_cli
from fukami.cli.inputs import OutputFolder, format_json_line, load_predictor, split_runs_and_files
from fukami.cli.main import InferencePrecision
from fukami.cli.prediction_formats import OutputFormat, PredictionWriter, build_writer
from fukami.errors import Error, UsageError, convert_memory_errors
from fukami.progress import ProgressBar, print_line, track

if TYPE_CHECKING:
    from fukami.cli.prediction_page import PredictionPage
    from fukami.engine.task import Task
    from fukami.image.video import Frame


@dataclass(frozen=True)
class GenerationOptions:
    """Options of image generation."""

    num_samples: int = 0
    """Number of images to generate, as files and in a grid."""
    seed: int = 0
    """Random seed of the latent vectors."""
    interpolation_steps: int = 0
    """Number of images interpolated between each image and the next; 0 disables it."""
    arithmetic: str = ""
    """Arithmetic on mean latent vectors of samples, by number, such as '1 2 3 - 4 5 6 + 7 8 9'."""
    nearest: bool = False
    """Also find the nearest training image of each generated image."""


NO_GENERATION = GenerationOptions()
MIN_FPS, MAX_FPS = 0.001, 1000.0
FRAME_BATCH_SIZE = 8  # frames of a video that are in memory at a time


def command(arguments: list[str]) -> None:
    """Run inference on images and videos."""
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
        confidence: float | None = None,
        tiles: int = 0,
        format: OutputFormat = "auto",
        set: tuple[str, ...] = (),
        recipe: Path | None = None,
        generation: GenerationOptions = NO_GENERATION,
    ) -> None:
        """Run inference on each image and each frame of a video. Prints a table on a terminal, else JSON lines.

        A run of a generator generates images instead: fukami predict RUN --num-samples 64 --out DIR.

        Args:
            inputs: Runs (folders or names of bundled weights; several are an ensemble), then images, videos and
                folders of them.
            out: Folder for images with drawn predictions and an HTML page of them.
            frame_interval: Interval between predicted frames of a video.
            fps: Frame rate of the images as frames of one video; 0: separate images.
            device: Device: auto, cpu, cuda, cuda:1 or mps.
            precision: Precision of inference. auto: float32, or that of an exported run.
            vote: Ensemble by majority vote instead of averaged probabilities.
            views: Test-time augmentation: number of augmented views averaged per image; 1 disables it.
            confidence: Minimum score of a predicted box, 0 to 1. Default: that of the run, which has the highest F1 on
                the validation data.
            tiles: Side of the overlapping tiles in which a detector predicts larger images, in pixels of the image, to
                find small objects; 0: no tiles.
            format: Output format. auto: table on a terminal, else jsonl (a JSON object per line). coco: COCO's results;
                yolo: label files in the folder --out, which then has no drawn images.
            set: Recipe fields that affect prediction, such as beam_size=3.
            recipe: File of the custom recipe that the run was trained with; a run never contains code.
            generation: Options of image generation.
        """
        from fukami.cli.prediction_page import PredictionPage
        from fukami.image import video

        if generation.num_samples:
            options = {"--frame-interval": frame_interval != 1, "--fps": fps, "--vote": vote, "--views": views != 1,
                       "--confidence": confidence is not None, "--tiles": tiles, "--format": format != "auto",
                       "--set": set}  # fmt: skip
            if unused := [name for name, is_specified in options.items() if is_specified]:
                raise UsageError(f"{unused[0]} is for predictions, and --num-samples generates images; omit it")
            _generate_images(inputs, generation, out, device, precision, recipe)
            return
        if generation != NO_GENERATION:
            raise UsageError(
                "--seed, --interpolation-steps, --arithmetic and --nearest apply to generated images; add --num-samples"
            )
        if frame_interval < 1:
            raise UsageError(f"--frame-interval should be a whole number of at least 1, not {frame_interval}")
        if fps != 0 and not MIN_FPS <= fps <= MAX_FPS:
            raise UsageError(f"--fps should be frames per second, 0 or from {MIN_FPS:g} to {MAX_FPS:g}, not {fps:g}")
        runs, files = split_runs_and_files(inputs)
        task = load_predictor(
            runs, device, precision, vote=vote, views=views, confidence=confidence, tiles=tiles, overrides=set,
            recipe=recipe,
        )  # fmt: skip
        if fps and task.reads_positions:
            raise UsageError("--fps is for images, and the run reads positions of a game; omit it")
        has_videos = any(map(video.is_video, files))
        if frame_interval != 1 and not has_videos:
            raise UsageError("--frame-interval is for videos, and there are none among the inputs; omit it")
        if fps and files and all(map(video.is_video, files)):
            raise UsageError("--fps is for images as frames of a video, and the inputs are videos; omit it")
        has_frames = fps > 0 or has_videos
        writer = build_writer(format, files, task.labels, out, has_frames=has_frames)
        with writer, PredictionPage(None if format == "yolo" else out, task, files) as page:
            failed, count = _predict_files(task, files, frame_interval, fps, page, writer)
        if failed:
            unit = "positions" if task.reads_positions else "files"
            raise Error(f"{failed} of {count} {unit} could not be processed")

    run_cli(run, arguments, "fukami predict")


def _generate_images(
    runs: Sequence[str],
    options: GenerationOptions,
    out: Path | None,
    device: str,
    precision: str,
    recipe_file: Path | None,
) -> None:
    """Generate images, write them to the folder ``out`` and print a JSON line for each."""
    from fukami.engine import run_folder, run_record
    from fukami.engine.load_run import load_task
    from fukami.engine.recipe import check_data
    from fukami.generation import samples as generation_samples
    from fukami.generation.task import GANTask

    if len(runs) != 1:
        raise UsageError(
            f"--num-samples generates images with one run and no input files; use one run, not {len(runs)} arguments"
        )
    if options.num_samples < 1 or (
        options.interpolation_steps and (options.interpolation_steps < 2 or options.num_samples < 2)
    ):
        raise UsageError(
            "--num-samples should be 1 or more; --interpolation-steps 2 or more, between at least 2 images"
        )
    if out is None:
        raise UsageError("--num-samples needs a folder for the images; add --out")
    task = load_task(runs[0], device=device, precision=precision, recipe=recipe_file)
    if not isinstance(task, GANTask):
        raise UsageError(f"{runs[0]} is not the run of a generator; remove --num-samples, and specify files")
    terms = generation_samples.parse_arithmetic(options.arithmetic, options.num_samples) if options.arithmetic else []
    folder = OutputFolder(out, ()).folder
    latents = task.sample_latents(options.num_samples, options.seed)
    images, predictions = generation_samples.write_samples(task, latents, options.seed, folder)
    if options.interpolation_steps:
        generation_samples.write_interpolation(task, latents, options.interpolation_steps, folder)
    if terms:
        generation_samples.write_arithmetic(task, latents, terms, folder)
    if options.nearest:
        recipe, _ = run_record.read_recipe(run_folder.locate_run(runs[0]), recipe_file)
        check_data(recipe)
        nearest_images = generation_samples.write_nearest_images(
            images, recipe.load_data().train, task.load_feature_extractor(), task.runtime.device, folder
        )
        predictions = [
            {**prediction, **nearest} for prediction, nearest in zip(predictions, nearest_images, strict=True)
        ]
    for prediction in predictions:
        print(format_json_line(prediction), flush=True)
    print(f"{folder / 'grid.png'} contains all images", file=sys.stderr)


def _predict_files(
    task: "Task",
    files: Sequence[str],
    frame_interval: int,
    fps: float,
    page: "PredictionPage",
    writer: PredictionWriter,
) -> tuple[int, int]:
    """Run inference on files in order; return how many could not be processed, and how many there are.

    Args:
        task: task of the run.
        files: images, positions and videos.
        frame_interval: interval between predicted frames of a video.
        fps: frame rate of consecutive images as frames of one video; 0: separate images.
        page: page of the predictions.
        writer: writer of the predictions.
    """
    from fukami.engine.prediction import read_input
    from fukami.image import video

    failed, count = 0, 0
    for are_videos, group in itertools.groupby(files, video.is_video):
        if are_videos:
            for file in group:
                failed += _predict_video(task, file, video.read_frames(file, frame_interval), page, writer)
                count += 1
        elif fps:
            images = list(group)
            name = Path(images[0]).resolve().parent.name or "video"
            errors: list[Error] = []
            frames = video.read_image_sequence(images, fps, partial(read_input, task), errors)
            failed += _predict_video(task, name, frames, page, writer)
            failed += len(errors)
            count += len(images)
            for error in errors:
                print_line(f"fukami: {error}")
        else:
            group_failed, group_count = _predict_images(task, list(group), page, writer)
            failed += group_failed
            count += group_count
    return failed, count


def _predict_images(
    task: "Task", files: Sequence[str], page: "PredictionPage", writer: PredictionWriter
) -> tuple[int, int]:
    """Run inference on images or positions; return how many could not be read or drawn, and how many there are."""
    failed, count = 0, 0
    predictions = task.iterate_predictions(files, keep_images=page.output is not None)
    total, unit = (None, "positions") if task.reads_positions else (len(files), "images")
    for image, prediction in track(predictions, "predict", total, unit):
        count += 1
        if "error" in prediction:
            failed += 1
            print_line(f"fukami: {prediction['error']}")
            continue
        with ProgressBar.external_write_mode(sys.stdout):
            writer.write(prediction)
        try:
            with convert_memory_errors(prediction["file"]):
                if image is not None:
                    page.add(image, prediction)
        except UsageError:
            raise
        except Error as error:
            failed += 1
            print_line(f"fukami: {error}")
    return failed, count


def _predict_video(
    task: "Task", file: str, frames: "Iterator[Frame]", page: "PredictionPage", writer: PredictionWriter
) -> int:
    """Run inference on the frames of a video and print the frame rate; return 1 if a frame failed, else 0."""
    from fukami.image import video

    failed, count, predict_seconds, start = 0, 0, 0.0, time.perf_counter()
    chunks = video.batch_frames(frames, FRAME_BATCH_SIZE)
    with page.record_video(file) as draw_frame, ProgressBar(f"predict {file}", unit="frames") as bar:
        while True:
            try:
                chunk = next(chunks, [])
            except Error as error:
                print_line(f"fukami: {error}")
                return 1
            if not chunk:
                break
            predict_start = time.perf_counter()
            predictions = task.predict([frame.image for frame in chunk])
            predict_seconds += time.perf_counter() - predict_start
            count += len(chunk)
            for frame, prediction in zip(chunk, predictions, strict=True):
                if "error" in prediction:
                    failed = 1
                    print_line(f"fukami: {file}, frame {frame.index}: {prediction['error']}")
                else:
                    location = {"file": frame.file or file, "frame": frame.index, "seconds": round(frame.timestamp, 6)}
                    with ProgressBar.external_write_mode(sys.stdout):
                        writer.write({**location, **prediction})
                    draw_frame(frame, prediction)
                bar.update()
    if count:
        total_seconds = time.perf_counter() - start
        rates = f"{count / predict_seconds:.1f} frames per second, {count / total_seconds:.1f} with reading and drawing"
        print_line(f"{file}: {count} frames at {rates}")
    return failed
