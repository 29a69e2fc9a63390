"""Typical mistakes on the command line: each ends with one short message that names the fix."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fukami import get_recipe, models
from fukami.catalogue import RECIPES
from fukami.cli import argument_checks
from fukami.cli.inputs import OutputFolder
from fukami.cli.main import COMMANDS
from fukami.cli.train import list_memory_fixes
from fukami.data.loader import InMemoryLoader
from fukami.data.streaming import FileStreamingLoader
from fukami.engine import run_folder
from fukami.errors import Error, suggest_memory_fixes

MAX_LENGTH = 400  # characters of a message
# Words of the command line, and what the message contains.
MISTAKES = [
    ("trian resnet18", "'train'"),
    ("resnet18", "unknown command"),
    ("train", "name the recipe first"),
    ("train --epochs 3 resnet18", "name the recipe first"),
    ("train resnet19", "did you mean 'resnet18'"),
    ("train mobilenet", "unknown recipe 'mobilenet'"),
    ("train missing.py", "no recipe file"),
    ("train resnet18 --learning-rate 1", "did you mean --lr?"),
    ("train resnet18 --imgsz 224", "did you mean --size?"),
    ("train fcn8s-vgg16 --imgsz 224", "did you mean --min-size?"),
    ("train resnet18 --batch 8", "did you mean --batch-size?"),
    ("train resnet18 --epoch 8", "did you mean --epochs?"),
    ("train resnet18 -o out", "did you mean --out?"),
    ("train resnet18 --num-workers 2", "--num-workers; streamed images are decoded by one worker process per"),
    ("train dqn --num-workers 2", "unknown option --num-workers; fukami train dqn --help lists the options"),
    ("eval deep-convnet --num-workers 2", "unknown option --num-workers; fukami eval --help lists the options\n"),
    ("train resnet18 --foo", "unknown option --foo; fukami train resnet18 --help lists the options"),
    ("train resnet18 --epochs ten", "--epochs takes a whole number, not 'ten'"),
    ("train resnet18 --epochs 3.5", "--epochs takes a whole number"),
    ("train resnet18 --epochs", "--epochs takes a value"),
    ("train resnet18 --epochs --lr 1", "--epochs takes a value"),
    ("train resnet18 --lr 0,1", "--lr takes a number"),
    ("train resnet18 --size=big", "--size takes a whole number"),
    ("train resnet18 --seed -1", "--seed should be from 0 to 2^64 - 1, not -1"),
    ("shard digits out --seed -1", "--seed should be from 0 to 2^64 - 1, not -1"),
    ("show digits --augment flip --out a.png --seed=-1", "--seed should be from 0 to 2^64 - 1, not -1"),
    (f"show digits --augment flip --out a.png --seed {2**64}", "--seed should be from 0 to 2^64 - 1"),
    ("show digits --out a.png --num-variants 3", "add --augment"),
    ("shard shards --index --samples 500", "omit --index"),
    ("explain vgg16 --set game=./my_game.py", "--set is for a run, and vgg16 is a model"),
    ("play dqn-catch --out a.gif --max-seconds nan", "--max-seconds more than 0"),
    ("eval deep-convnet --precision all --set memory_limit=0", "evaluates the run without changes; omit --set"),
    ("eval deep-convnet --precision all --vote", "evaluates the run without changes; omit --vote"),
    ("train resnet18 --channels four", "--channels takes a whole number"),
    ("train resnet18 --channels 99", "channels should be"),
    ("train resnet18 --freeze yes", "use --freeze or --no-freeze"),
    ("train resnet18 --freeze=1", "use --freeze or --no-freeze"),
    ("train resnet18 epochs=10", "did you mean --epochs 10?"),
    ("train resnet18 flowers", "unexpected argument 'flowers'"),
    ("train resnet18 --augment flip --augment hue", "--augment is specified twice"),
    ("train resnet18 --augment filp", "'flip'"),
    ("train resnet18 --optimizer sdg", "--optimizer takes one of"),
    ("train resnet18 --data mnits", "no file or folder 'mnits', and no built-in dataset of that name; did you"),
    ("train deep-convnet --data digits --init vgg.safetensors", "these are VGG-16 weights; deep_convnet needs its own"),
    ("train resnet18 --out text.txt --data digits", "text.txt"),
    ("find-lr", "name the recipe first"),
    ("find-lr deep-convnet --min-lr low", "--min-lr takes a number"),
    ("list resnte", "unknown recipe 'resnte'; did you mean 'resnet"),
    ("list resnet18 vgg16", "unexpected argument 'vgg16'"),
    ("board", "FOLDER must be specified"),
    ("board missing", "missing"),
    ("board runs --out runs", "--out should be an .html file, not runs"),
    ("board runs --out .", "--out should be an .html file, not ."),
    ("train resnet18 --num-seeds 2 --out runs/resnet18 --data digits", "runs/resnet18 is the folder of a single run"),
    ("train fcn8s-vgg16 --data a --images b --annotations c", "--images and --annotations replace --data"),
    ("eval", "at least one run"),
    ("eval resnet18", "did you mean runs/resnet18?"),
    ("eval missing", "neither a run's folder"),
    ("eval deep-convnet --data mnits", "did you mean 'mnist'"),
    ("eval deep-convnet --batch-size 8", "--set batch_size=VALUE"),
    ("eval deep-convnet --set beam_size=3", "beam_size"),
    ("predict", "specify the runs first"),
    ("predict runs/x --num-samples 4 --format csv", "--format is for predictions, and --num-samples generates"),
    ("predict deep-convnet", "specify the runs first"),
    ("predict image.png", "neither a run's folder"),
    ("predict resnet18 image.png", "did you mean runs/resnet18?"),
    ("predict ResNet-18 image.png", "did you mean runs/resnet18?"),
    ("predict deep-convnet missing.png", "missing.png"),
    ("predict deep-convnet text.txt", "text.txt"),
    ("predict deep-convnet image.png --output x", "did you mean --out?"),
    ("predict deep-convnet image.png --device gpu", "unknown device 'gpu'; did you mean 'cuda'"),
    ("explain", "specify a model or a run first"),
    ("explain resnet19", "did you mean 'resnet18'"),
    ("explain resnet18 image.png", "model without trained weights"),
    ("explain resnet18 --input-shape 224", "channels x height x width"),
    ("play", "FOLDER must be specified"),
    ("gtp", "FOLDER must be specified"),
    ("play deep-convnet --out x.gif", "not the run of an agent"),
    ("stylize image.png", "--style and --out must be specified"),
    ("stylize --style image.png --out x.png", "CONTENT must be specified"),
    ("stylize missing.png --style image.png --out x.png", "missing.png"),
    ("export deep-convnet", "--to must be specified"),
    ("export deep-convnet --format onnx", "did you mean --to?"),
    ("export deep-convnet --to tflite", "--to takes one of"),
    ("serve", "at least one run"),
    ("serve deep-convnet --port http", "--port takes a whole number"),
    ("import text.txt", "--out must be specified"),
    ("import text.txt --out x", "text.txt"),
    ("doctor", "specify either DATA, or --images and --annotations"),
    ("doctor mnits", "did you mean 'mnist'"),
    ("doctor text.txt --out text.txt", "text.txt is the file of the dataset"),
    ("doctor digits mnist", "unexpected argument 'mnist'"),
    ("shard digits", "fukami shard DATA OUT"),
    ("shard digits out --samples 9 --megabytes 1", "--samples and --megabytes both determine"),
    ("shard digits out --megabytes nan", "more than 0 MB"),
    ("shard mnits out", "did you mean 'mnist'"),
    ("show digits --num-images few", "--num-images takes a whole number"),
    ("propose", "at least one image"),
    ("propose missing.png", "missing.png"),
    ("bench --device 0", "did you mean 'cuda'"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digit_files):
    """Folder with an image, a text file, weights of VGG-16 and a run ``runs/resnet18``."""
    tmp_path = tmp_path_factory.mktemp("mistakes")
    shutil.copy(next(digit_files.rglob("*.png")), tmp_path / "image.png")
    (tmp_path / "text.txt").write_text("hello")
    with torch.device("meta"):
        tensors = models.vgg16().features.state_dict()
    save_file(
        {f"features.{key}": torch.zeros(value.shape) for key, value in tensors.items()}, tmp_path / "vgg.safetensors"
    )
    shutil.copytree(run_folder.BUNDLED_WEIGHTS_DIR / "deep-convnet", tmp_path / "runs" / "resnet18")
    return tmp_path


@pytest.fixture
def run(fukami, folder, monkeypatch):
    """Function that runs a command in the folder."""
    monkeypatch.chdir(folder)
    return lambda words: fukami(*words.split())


@pytest.mark.parametrize(("words", "hint"), MISTAKES)
def test_typical_mistake(run, words, hint):
    """No traceback, no message that calls the mistake a bug, and none that is long."""
    result = run(words)
    assert result.status in (1, 2)
    assert hint in result.err
    assert result.out == ""
    assert not re.search("Traceback|should not happen|this is a bug", result.err)
    assert len(result.err) <= MAX_LENGTH


def test_mistakes_walk_every_command():
    assert {words.split()[0] for words, _ in MISTAKES} >= set(COMMANDS)
    assert len(MISTAKES) >= 40


@pytest.mark.parametrize(
    "words",
    [
        "predict deep-convnet image.png --precision bfloat16 other.png",
        "predict --precision bfloat16 deep-convnet image.png other.png",
        "predict deep-convnet --precision=bfloat16 image.png other.png",
        "predict deep-convnet image.png other.png --precision bfloat16",
        "predict deep-convnet --set size=28 image.png --precision bfloat16 -- other.png",
    ],
)
def test_options_before_between_and_after_files(run, folder, words):
    shutil.copy(folder / "image.png", folder / "other.png")
    result = run(words)
    assert result.status == 0, result.err
    assert [line["file"] for line in result.json] == ["image.png", "other.png"]
    assert result.json[0] == run("predict deep-convnet image.png --precision bfloat16").json[0]


def test_options_between_the_arguments_of_other_commands(fukami):
    assert fukami("shard", "--samples", "100", "digits", "--seed", "1", "out").status == 0
    assert fukami("show", "--augment", "flip", "--num-images", "2", "digits", "--out", "grid.png").status == 0
    assert fukami("show", "--augment", "flip", "hue", "digits", "--num-images", "2").status == 0  # digits is the data
    assert fukami("eval", "--precision", "float32", "deep-convnet", "--data", "digits").json[0]["count"] > 0


def test_values_that_begin_with_a_hyphen(fukami):
    """They are values where they are numbers, and options otherwise."""
    assert "lr should be at least 0" in fukami("train", "deep-convnet", "--lr", "-1").err
    assert "lr should be at least 0" in fukami("train", "deep-convnet", "--lr", "-inf").err
    assert "--lr takes a value" in fukami("train", "deep-convnet", "--lr", "-x").err
    assert "'-x.png'" in fukami("predict", "--", "-x.png").err


@pytest.mark.filterwarnings("ignore:The field")
def test_several_values(fukami, tmp_path):
    """A custom recipe may have fields of any type that the command line can parse."""
    (tmp_path / "recipe.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import Literal, Optional\n"
        "from fukami.engine.recipe import Recipe\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Custom(Recipe):\n"
        "    pair: tuple[int, str] = (1, 'a')\n"
        "    names: list[str] = ()\n"
        "    modes: tuple[Literal['a', 'b'], ...] = ()\n"
        "    count: int | None = None\n"
        "    limit: Optional[float] = None\n"
        "    def load_data(self):\n"
        "        print(self.pair, tuple(self.names), self.modes, self.count, self.limit)\n"
        "        raise SystemExit(0)\n"
    )
    words = "train recipe.py --pair 2 b --names x y --modes b a --count 3 --limit 0.5"
    assert fukami(*words.split()).out == "(2, 'b') ('x', 'y') ('b', 'a') 3 0.5\n"
    assert "--pair takes 2 values, not 1" in fukami("train", "recipe.py", "--pair", "2").err
    assert "--pair takes a whole number, not 'b'" in fukami("train", "recipe.py", "--pair", "b", "2").err
    assert "--modes takes one of a, b, not 'c'" in fukami("train", "recipe.py", "--modes", "a", "c").err
    assert "--count takes a whole number" in fukami("train", "recipe.py", "--count", "x").err


def test_every_synonym_is_of_an_option():
    """An option that was renamed may not stay in the table, and no option is a synonym where it exists itself."""
    fields = {name.replace("_", "-") for recipe in RECIPES for name in get_recipe(recipe).__dataclass_fields__}
    options = {"out", "device", "precision", "resume", "processes", "views", "to", "frame-interval", "num-samples"}
    assert set(argument_checks.SYNONYMS) <= fields | options


@pytest.mark.parametrize("name", ["ResNet-18", "resnet_18", "RESNET18", "Faster-RCNN-VGG16", "deep_convnet"])
def test_names_of_recipes_ignore_case_hyphens_and_underscores(name):
    recipe = get_recipe(name)
    assert recipe.__name__.lower() == name.lower().replace("-", "").replace("_", "")


def test_recipe_names_differ_in_more_than_hyphens():
    assert len({name.replace("-", "") for name in RECIPES}) == len(RECIPES)
    assert len({name.replace("_", "") for name in models.__all__}) == len(models.__all__)


def test_run_of_another_spelling_has_the_name_of_the_recipe(fukami):
    result = fukami("train", "DeepConvNet", "--epochs", "1", "--batch-size", "100")
    assert result.json[0]["run"] == "runs/deep-convnet"
    assert fukami("explain", "Deep-ConvNet").out == fukami("explain", "deep_convnet").out


class FakeOutOfMemoryError(RuntimeError):
    """The name of torch's error."""


FakeOutOfMemoryError.__name__ = "OutOfMemoryError"
CUDA_MESSAGE = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which ..."
CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "12000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FakeOutOfMemoryError(CUDA_MESSAGE), "the GPU has no memory for another 2.50 GiB"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "the GPU has no memory"),
        (RuntimeError(CPU_MESSAGE), "the machine has no memory for another 12.00 GB"),
        (MemoryError(), "the machine has no memory"),
    ],
)
@pytest.mark.parametrize(
    ("recipe", "data", "fixes"),
    [
        (
            "deep-convnet",
            "digits",
            "lower --batch-size or --size, raise --accumulate or add --activation-checkpointing",
        ),
        ("fcn32s-vgg16", "", "lower --batch-size or --min-size, raise --accumulate or add --activation-checkpointing"),
        ("dcgan", "", "lower --batch-size or --size"),
        ("rcnn", "", "lower --batch-size or --size or --min-size or raise --accumulate"),
        ("rcnn-svm", "", "lower --size or --min-size"),
        ("dqn", "", "lower --batch-size or --buffer-size"),
        ("alphago-policy", "", "lower --batch-size"),
        ("neural-style", "", "lower --size"),
    ],
)
def test_out_of_memory_names_the_options_of_the_recipe(fukami, monkeypatch, error, reason, recipe, data, fixes):
    required = {"content": "a.png", "style": ("b.png",)} if recipe == "neural-style" else {}
    with pytest.raises(Error) as raised, suggest_memory_fixes(*list_memory_fixes(get_recipe(recipe)(**required))):
        raise error
    assert str(raised.value) == f"{reason}; {fixes}"
    if data:

        def fail(*arguments):
            raise error

        monkeypatch.setattr("fukami.classification.task.ClassificationTask.step", fail)
        result = fukami("train", recipe, "--data", data)
        assert result.status == 1
        assert result.err.endswith(f"fukami: {reason}; {fixes}\n")
        result = fukami("find-lr", recipe, "--data", data)
        assert result.err.endswith(f"fukami: {reason}; {fixes}\n")


def test_out_of_memory_in_evaluation_and_in_other_commands(fukami, monkeypatch):
    def fail(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("fukami.classification.task.ClassificationTask.evaluate", fail)
    result = fukami("eval", "deep-convnet", "--data", "digits")
    fixes = "stream the images with --set memory_limit=0, use --precision bfloat16 or close other programs"
    assert (result.status, result.err) == (1, f"fukami: the machine has no memory; {fixes}\n")
    options = ("--set", "memory_limit=0", "--precision", "bfloat16", "--views", "2")
    result = fukami("eval", "deep-convnet", "--data", "digits", *options)
    assert result.err == "fukami: the machine has no memory; lower --views or close other programs\n"
    monkeypatch.setattr("fukami.engine.export.export_run", fail)
    result = fukami("export", "deep-convnet", "--to", "onnx")
    expected = "fukami: the machine has no memory; use fewer or smaller images or close other programs\n"
    assert (result.status, result.err) == (1, expected)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS limits the memory of a process on Linux only")
def test_a_process_with_little_memory(tmp_path):
    """The allocator fails, not a substitute for it."""
    code = (
        "import resource, torch\n"
        "from fukami.cli.main import main\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**30, -1))\n"
        "main('train deep-convnet --data digits --size 512 --batch-size 1024 --memory-limit 0.1'.split())\n"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert process.returncode == 1, process.stderr
    assert re.search(r"the machine has no memory( for another .* GB)?; lower --batch-size or --size, ", process.stderr)
    assert "this is a bug" not in process.stderr
    assert "Traceback" not in process.stderr


def test_an_error_of_the_system_is_no_bug(fukami, monkeypatch):
    def fail(*arguments):
        raise PermissionError(13, "Permission denied", "/root/x")

    monkeypatch.setattr("fukami.engine.export.export_run", fail)
    result = fukami("export", "deep-convnet", "--to", "onnx")
    assert (result.status, result.err) == (1, "fukami: /root/x: Permission denied\n")


def test_the_advice_for_an_evaluation_streams_the_images(digit_files):
    """It holds none of them in memory."""
    recipe = get_recipe("deep-convnet")(data=str(digit_files), convention="image")
    assert isinstance(recipe.load_eval_data().eval_batches, InMemoryLoader)
    assert isinstance(replace(recipe, memory_limit=0.0).load_eval_data().eval_batches, FileStreamingLoader)


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("DataLoader worker (pid 7) exited unexpectedly", "DataLoader worker (pid 7) is killed by signal: Bus error."),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out "
         "of shared memory. Please try to raise your shared memory limit.", None),
        ("Caught RuntimeError in DataLoader worker process 0.\nunable to allocate shared memory(shm) for file", None),
        ("unable to resize file <filename not specified> to the right size: No space left on device (28)", None),
    ],
)  # fmt: skip
def test_full_shared_memory_is_no_bug(fukami, monkeypatch, message, cause):
    def fail(*arguments):
        raise RuntimeError(message) from cause and RuntimeError(cause)

    monkeypatch.setattr("fukami.classification.task.ClassificationTask.step", fail)
    result = fukami("train", "deep-convnet", "--epochs", "1")
    assert result.status == 1
    assert "filled the shared memory /dev/shm; enlarge it (in Docker: --shm-size 8g), or start fewer" in result.err
    assert "this is a bug" not in result.err


@pytest.mark.parametrize("command", ["eval {run}", "explain {run}", "predict {run} 1.png"])
@pytest.mark.parametrize("is_run", [False, True])
def test_an_output_folder_that_is_a_file_or_a_run(command, is_run, fukami, trained, tmp_path):
    """The error comes before the work, and the report of the run is kept."""
    report = (trained / "report.html").read_bytes()
    Image.new("L", (28, 28)).save(tmp_path / "1.png")
    (tmp_path / "out").write_text("")
    out = trained if is_run else "out"
    result = fukami(*command.format(run=trained).split(), "--out", out)
    assert result.status == 2
    assert f"{out} is {'the folder of a run' if is_run else 'a file'}" in result.err
    assert (trained / "report.html").read_bytes() == report
    assert not result.out


@pytest.mark.slow
def test_processes_of_another_launcher_need_the_same_folder(tmp_path):
    """Each would choose its own, as torchrun starts them at the same time."""
    command = [sys.executable, "-m", "fukami", "train", "deep-convnet", "--data", "digits"]
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert result.returncode == 2
    assert (
        result.stderr == "fukami: rank 1: the processes of a training run need the same folder; specify it with --out\n"
    )
    assert not [*tmp_path.iterdir()]


def test_outputs_differ_in_more_than_the_case_of_letters(tmp_path):
    """Names of files on macOS and Windows do not distinguish the case."""
    output = OutputFolder(tmp_path, [str(tmp_path / "B.PNG")])
    paths = [output.reserve_path(name, "png").name for name in ("a/X.jpg", "b/x.jpg", "b.jpg", "x.v2.jpg", "x.v3.jpg")]
    assert paths == ["X.png", "x-2.png", "b-2.png", "x.v2.png", "x.v3.png"]


def test_a_class_name_of_thousands_of_characters(fukami, digit_files, tmp_path):
    name = next(iter(digit_files.rglob("*.png")))
    (tmp_path / "labels.csv").write_text(f"path,label\n{name},cat\n{name},{'x' * 1001}\n{name},cat\n")
    result = fukami("train", "deep-convnet", "--data", "labels.csv", "--epochs", "5", "--batch-size", "2")
    assert result.status == 1
    assert "has 1,001 characters, more than the limit of 1,000; shorten it" in result.err


def test_the_range_test_needs_one_loss(fukami):
    result = fukami("find-lr", "dcgan", "--data", "digits", "--num-steps", "10")
    assert result.status == 2
    assert "follows one loss of gradient descent, and this recipe has" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "deep-convnet", "--vote"), "a single network is no ensemble; specify several runs, or omit --vote"),
        (
            ("predict", "deep-convnet", "a.png", "--seed", "1"),
            "--arithmetic and --nearest apply to generated",
        ),
        (("predict", "deep-convnet", "a.png", "--frame-interval", "5"), "--frame-interval is for videos"),
        (("explain", "vgg16", "--recipe", "mine.py"), "--recipe is for a run, and vgg16 is a model"),
        (("play", "alphago-zero-connect4", "--seed", "1"), "--seed is for a match or an agent; add --against"),
        (("stylize", "a.png", "--style", "b.png", "--out", "c.png", "--resume"), "nothing to resume in c.run"),
        (("train", "alphago-zero", "--game", "go9", "GO-9"), "game names a game twice: go9 GO-9"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_flags_without_effect_are_rejected(fukami, tmp_path, arguments, message):
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    Image.new("L", (28, 28)).save(tmp_path / "b.png")
    result = fukami(*arguments)
    assert result.status == 2
    assert message in result.err


def test_labels_with_dollar_signs_are_drawn_literally(fukami, tmp_path):
    """Matplotlib would take the text between two of them as mathematics, and fail at the quotation marks."""
    for label in ('a "$5" or "$6"', "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (16, 16), (index, 0, 0)).save(tmp_path / "data" / label / f"{index}.png")
    assert fukami("show", "--augment", "flip", "--out", "grid.png", "--", "data").status == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", ["list", "doctor digits", "list resnte"])
def test_a_full_disk_of_the_output(words):
    """The interpreter does not write the output again at its end, which would be another error and status 120."""
    with open("/dev/full", "w") as full:  # noqa: PTH123
        result = subprocess.run(
            [sys.executable, "-m", "fukami", *words.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == (2 if "resnte" in words else 1 if words == "list" else 0), result.stderr
    assert "Exception ignored" not in result.stderr
    assert "bug" not in result.stderr


def test_positions_of_a_game_are_no_frames(fukami, tmp_path):
    (tmp_path / "positions.txt").write_text("." * 42)
    result = fukami("predict", "alphago-zero-connect4", "positions.txt", "--fps", "2")
    assert result.status == 2
    assert "--fps is for images, and the run reads positions of a game" in result.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_results_are_not_computed_for_a_folder_that_is_not_writable(fukami, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    result = fukami("find-lr", "deep-convnet", "--out", "out/lr.png")
    assert result.status == 2
    assert "out is not a writable folder" in result.err
