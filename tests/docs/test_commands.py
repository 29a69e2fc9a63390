"""Tests of the commands in the READMEs and the pages: their names, recipes and flags exist, and they run.

The commands of a page run one after the other in one folder, with a few images in place of each dataset, small networks
and short trainings. Nothing is downloaded: ``--init`` with published weights is omitted.
"""

import io
import itertools
import json
import re
import shlex
import shutil
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from doc_pages import PAGES, ROOT, cut_command, join_lines
from fukami.catalogue import RECIPES
from fukami.cli.main import COMMANDS
from fukami.image.video import VideoWriter
from fukami.self_play import connect_four_positions, evaluation

PLACEHOLDER = re.compile(r"[A-Z]+|<.*")

# commands that do not run here: servers, downloads, files of other programs, other images, placeholders
SKIPPED = re.compile(
    "|".join(
        (
            "serve |bench$|import |shard DATA|eval runs/scratch",
            "train fcn(16|8)s-vgg16 .*--init runs",  # after --init imagenet, which changes the network
            "eval .*(--precision all|eval_samples=2000)",  # they take minutes, and have tests of their own
            r"train .*https:|train .*--channels (4|13)",
            r"predict .*(tile\.tif|runs/voc|runs/coco)",
            *([] if shutil.which("gnugo") else ["play .*gnugo"]),
        )
    )
)
# options of small networks, short trainings and short games, where the command has them
SMALL = {
    "anchor-sizes": "24 48", "base-channels": "4", "batch-size": "4", "beam-size": "1", "context-padding": "4",
    "encoder": "resnet20", "epochs": "1", "eval-episodes": "2", "eval-games": "2", "eval-opponent": "random",
    "eval-samples": "40", "num-filters": "4", "games": "2", "hidden": "8", "iterations": "2", "learning-starts": "1000",
    "max-size": "96", "min-size": "64", "min-word-count": "1", "num-blocks": "1", "num-channels": "4",
    "num-games": "16", "num-seeds": "2", "num-steps": "10", "positions": "1200", "processes": "2",
    "self-play-simulations": "2", "simulations": "2", "size": "64", "steps": "1200", "weights": "",
    "width-multiplier": "0.0625",
}  # fmt: skip
UNCHANGED = {  # fields that these recipes need
    "alphago-policy": ("size",),
    "faster-rcnn-resnet50-fpn": ("anchor-sizes",),
    "rcnn-boxes": ("epochs", "batch-size"),
    "rcnn-svm": ("epochs", "batch-size"),
}
DATASETS = {  # bundled images and generated files in place of datasets with a known name
    "mnist": "flowers", "cifar10": "flowers", "cifar100": "flowers", "imagenet": "flowers", "camvid": "streets",
    "bccd": "my-boxes",
}  # fmt: skip
FOLDERS = {  # fixtures of the folders in commands
    **dict.fromkeys(("flowers", "photographs", "holidays", "my-data", "my-images", "new-images"), "digit_files"),
    **dict.fromkeys(("frames", "shop", "symbols"), "digit_files"),
    **dict.fromkeys(("my-boxes",), "scene_files"),
    **dict.fromkeys(("my-masks", "street", "streets"), "mask_files"),
    **dict.fromkeys(("my-captions",), "caption_files"),
}
PAGE_FOLDERS = {
    ("segment", "my-images"): "mask_files",
    ("fcn", "my-images"): "mask_files",
    ("show-and-tell", "my-images"): "caption_files",
}
TASK_DATA = {
    "classification": ("--data", "flowers"),
    "detection": ("--data", "my-boxes"),
    "segmentation": ("--data", "streets"),
    "captioning": ("--data", "my-captions"),
    "generation": ("--data", "flowers"),
    "style": ("--content", "photograph.jpg", "--style", "artwork.jpg"),
    "reinforcement": (),
    "self-play": (),
}
RUNS = {  # recipes of runs that are not named after theirs
    "first": "deep-convnet", "second": "deep-convnet", "third": "deep-convnet", "animals": "resnet18",
    "go7": "alphago-zero --game go7", "five": "alphago-zero --game ./my_game.py", "artwork": "neural-style",
    "alphago-policy": "alphago-policy --data games.zip", "my-recipe": "./my_recipe.py",
}  # fmt: skip


INPUTS = {  # of runs of other games
    "runs/alphago-policy": ("game.sgf", "(;GM[1]SZ[19];B[dd];W[pp])"),
    "runs/five": ("positions.txt", "." * 49),
}


def list_commands(text, languages="bash|text"):
    """List the arguments of the fukami commands in code blocks; a backslash continues a line, two spaces end it."""
    blocks = re.findall(rf"^ *```(?:{languages})[^\n]*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in join_lines(block).splitlines()]
    commands = [command.strip() for line in lines for command in line.split(" && ")]
    commands = [cut_command(line) for line in commands if re.match(r"(\w+=\S+ )*fukami ", line)]
    words = [shlex.split(line) for line in commands]
    return [command[command.index("fukami") + 1 :] for command in words]


def list_inline_commands(text):
    """List the arguments of the fukami commands in sentences and tables."""
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(command) for command in re.findall(r"`fukami ([^`]+)`", text)]


def list_flags(arguments):
    return {argument[2:].partition("=")[0] for argument in arguments if re.match(r"--\w", argument)}


FLAGS = {}  # of a command, or of a recipe


def get_flags(fukami, *arguments):
    if arguments not in FLAGS:
        FLAGS[arguments] = {"help", *re.findall(r"--([\w-]+)", fukami(*arguments, "--help").out)}
    return FLAGS[arguments]


def has_recipe(name, arguments):
    return name in ("train", "find-lr") and bool(arguments) and not arguments[0].startswith("-")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_recipes_and_flags_exist(path, fukami):
    text = path.read_text(encoding="utf-8")
    for name, *arguments in list_commands(text) + list_inline_commands(text):
        if not re.match("[a-z]", name):
            continue  # --help, --version, a placeholder, or output
        assert name in COMMANDS, name
        if has_recipe(name, arguments) and (arguments[0].endswith(".py") or PLACEHOLDER.fullmatch(arguments[0])):
            continue  # a recipe of the reader
        if has_recipe(name, arguments):
            assert arguments[0] in RECIPES, arguments
        assert list_flags(arguments) <= get_flags(fukami, name, *arguments[: has_recipe(name, arguments)]), arguments


def test_the_pages_have_commands():
    texts = [path.read_text(encoding="utf-8") for path in PAGES]
    assert sum(len(list_commands(text)) for text in texts) > 200
    assert sum(len(list_inline_commands(text)) for text in texts) > 150


# ---- running the commands -------------------------------------------------------------------------------------------


def list_runnable(path):
    commands = list_commands(path.read_text(encoding="utf-8"), "bash")
    return [command for command in commands if not SKIPPED.match(" ".join(command))]


def shrink(fukami, command):
    """Replace datasets and weights that are not here, and add the options of ``SMALL`` that the command has."""
    name, *arguments = command
    if "--init" in arguments:
        index = arguments.index("--init")
        if re.fullmatch(r"imagenet|coco|FILE|.*\.safetensors", arguments[index + 1]):
            # the feature extractor of --freeze needs weights; those of a run are
            arguments[index : index + 2] = ["--init", f"runs/{arguments[0]}"] if "--freeze" in arguments else []
    arguments = [DATASETS.get(word, word) for word in arguments]
    flags = get_flags(fukami, name, *arguments[: has_recipe(name, arguments)])
    optional = {"games", "num-seeds", "processes", *(["simulations"] if name == "play" else [])}  # only where given
    flags = flags - (optional - list_flags(arguments))
    small = {flag: value for flag, value in SMALL.items() if flag in flags}
    small = {flag: value for flag, value in small.items() if flag not in UNCHANGED.get("".join(arguments[:1]), ())}
    if "--cycles" in arguments:
        small["epochs"] = "4"
    return [
        name,
        *arguments,
        *(word for flag, value in small.items() for word in (f"--{flag}", *(value.split() or [""]))),
    ]


def write_boxes(images, file):
    """Write annotations of COCO with a box in the middle of each image of a folder."""
    files = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    box = {"category_id": 1, "bbox": [30, 30, 50, 50], "area": 2500, "iscrowd": 0}
    content = {
        "images": [{"id": index, "file_name": name, "width": 112, "height": 112} for index, name in enumerate(files)],
        "annotations": [{"id": index, "image_id": index, **box} for index in range(len(files))],
        "categories": [{"id": 1, "name": "digit"}],
    }
    file.write_text(json.dumps(content))


def write_video(file):
    with VideoWriter(file) as video:
        for index in range(6):
            image = Image.linear_gradient("L").rotate(15 * index).resize((96, 72)).convert("RGB")
            video.add(image, index / 30, Fraction(30))


def write_games(file):
    """Write games of Go in which no stones touch."""
    points = [f"{x}{y}" for x in "acegikmoqs" for y in "acegikmoqs"]
    with zipfile.ZipFile(file, "w") as archive:
        for seed in range(12):
            moves = np.random.default_rng(seed).permutation(points)[:30]
            nodes = "".join(f";{'BW'[index % 2]}[{point}]" for index, point in enumerate(moves))
            names = f"PB[{'AlphaGo' if seed % 4 == 0 else 'Ann'}]PW[Bob]RE[{'BW'[seed % 2]}+R]"
            archive.writestr(f"{seed}.sgf", f"(;GM[1]FF[4]SZ[19]{names}{nodes})")


def write_file(path):
    """Write an input file, if its suffix is that of one."""
    if path.name == "digit.png":
        shutil.copy(ROOT / "docs" / "digit.png", path)
    elif path.suffix in (".jpg", ".png", ".tif"):
        Image.linear_gradient("L").resize((120, 90)).convert("RGB").save(path)
    elif path.suffix == ".mp4":
        write_video(path)
    elif path.suffix == ".py":
        shutil.copy(ROOT / "docs" / "examples" / path.name, path)
    elif path.name == "positions.txt":
        path.write_text("." * 42 + "\n")
    elif path.name == "game.sgf":
        path.write_text("(;GM[1]SZ[7];B[dd];W[cc])")
    elif path.name == "games.zip":
        write_games(path)
    elif path.name == "boxes.json":
        write_boxes(Path("photographs"), path)


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory):
    """Folder of the small runs that several pages use; each is trained for the first of them."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def run_command(fukami, few_scenes, request, trained_runs, monkeypatch):
    """Function that runs a command of a page after it has created the runs, folders and files that are its input."""
    load = connect_four_positions.load_positions
    monkeypatch.setattr(connect_four_positions, "load_positions", lambda *names: [array[:9] for array in load(*names)])
    monkeypatch.setattr(evaluation, "collect_play_positions", lambda *_: [array[:9] for array in load("val", "random")])
    Path("docs").symlink_to(ROOT / "docs")

    def run(command, stem):
        words = shrink(fukami, command)
        for flag, word in itertools.pairwise(words):
            if flag != "--out":
                prepare(Path(word.rpartition("=")[2]), stem)  # also of --set game=./my_game.py
            elif words[0] == "train" and "--resume" not in words:  # a run that was prepared for an earlier command
                shutil.rmtree(word, ignore_errors=True)
        for name, (file, text) in INPUTS.items():
            if name in words:
                Path(file).write_text(text)
        if words[0] == "stylize" and "--resume" in words:  # the run beside the image
            index = words.index("--out")
            fields = [word for word in (*words[2:index], *words[index + 2 :]) if word != "--resume"]
            folder = str(Path(words[index + 1]).with_suffix(".run"))
            assert fukami("train", "neural-style", "--content", words[1], *fields, "--out", folder).status == 0
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"quit\n")))
        result = fukami(*words)
        statuses = (0, 1) if words[0] == "doctor" else (0,)  # 1: a problem, such as a class without validation images
        assert result.status in statuses, f"fukami {shlex.join(words)}\n{result.err}"

    def prepare(path, stem):
        """Create a folder, a file or a run, unless it exists; other words are ignored."""
        folder = PAGE_FOLDERS.get((stem, path.name), FOLDERS.get(path.name))
        if path.exists():
            return
        if path.parts[:1] == ("runs",):
            prepare_run(path if len(path.parts) > 1 else path / "deep-convnet", stem)
        elif folder is not None:
            shutil.copytree(request.getfixturevalue(folder), path)
        else:
            write_file(path)

    def prepare_run(path, stem):
        recipe, *fields = shlex.split(RUNS.get(path.name, path.name))
        data = TASK_DATA[RECIPES[recipe].task] if recipe in RECIPES else ()
        if not (trained_runs / path.name).exists():
            run(["train", recipe, *fields, *data, "--out", str(path)], stem)
            shutil.copytree(path, trained_runs / path.name)
        elif not path.exists():
            shutil.copytree(trained_runs / path.name, path)
        for word in data[1::2]:
            prepare(Path(word), stem)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in PAGES if list_runnable(path)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_commands_run(path, run_command):
    for command in list_runnable(path):
        run_command(command, path.stem)
