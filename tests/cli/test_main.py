"""The command line: names of commands and options, output formats and exit statuses."""

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

import fukami as package
from fukami.catalogue import RECIPES
from fukami.engine.load_run import load_task

COMMANDS = [
    "doctor", "shard", "show", "propose", "list", "train", "find-lr", "board", "eval", "predict", "explain", "play",
    "gtp", "stylize", "export", "serve", "import", "bench",
]  # fmt: skip
QUICK = ["--epochs", "1", "--batch-size", "100"]


def test_help_names_every_command(fukami):
    result = fukami("--help")
    assert result.status == 0
    assert [line.split()[0] for line in result.out.splitlines() if line.startswith("  ")] == COMMANDS
    assert [line for line in result.out.splitlines() if line.endswith(":")] == [
        "data:",
        "training:",
        "models:",
        "tools:",
    ]
    assert max(map(len, result.out.splitlines())) <= 80
    assert fukami().out == result.out


def test_version(fukami):
    assert fukami("--version").out == "fukami 0.2.0\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(fukami, command):
    result = fukami(command, "--help")
    assert result.status == 0
    assert command in result.out


def test_options_of_train_are_these(fukami):
    """Snapshot of the options, so that additions and renames are noticed."""
    text = fukami("train", "deep-convnet", "--help").out
    options = {word.strip(",;.:") for word in text.split() if re.match("--[a-z]", word)}
    run = {
        "--help",
        "--out",
        "--device",
        "--precision",
        "--resume",
        "--no-resume",
        "--allow-changed-data",
        "--no-allow-changed-data",
        "--num-seeds",
        "--compile",
        "--no-compile",
        "--processes",
        "--timeout",
    }
    fields = "seed data images annotations val-fraction memory-limit max-unreadable size channels epochs eval-every "
    fields += "patience batch-size accumulate "
    fields += "activation-checkpointing no-activation-checkpointing optimizer lr lr-scaling clip-norm momentum "
    fields += "weight-decay schedule drop-factor warmup cycles label-smoothing ema-decay augment balance init "
    fields += "freeze no-freeze feature-views head-epochs layer-lr-decay quantize dropout convention widths hidden "
    fields += "batch-norm no-batch-norm"
    assert options == run | {f"--{field}" for field in fields.split()}


def test_list(fukami):
    result = fukami("list")
    assert result.status == 0
    (row,) = [line for line in result.out.splitlines() if line.startswith("deep-convnet ")]
    assert all(fact in row for fact in ("classification", "2016", "99.35 %", "Saitoh"))
    assert "resnet152 " not in result.out  # no measured result
    lines = fukami("list", "--all").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(RECIPES)
    (row,) = [line for line in lines if line.startswith("resnet152 ")]
    assert "  not measured  " in row


def test_list_with_a_word(fukami):
    """All recipes that contain it, without case, hyphens and underscores, or an error with the nearest names."""
    for word in ("vgg1", "VGG-1"):
        lines = fukami("list", word).out.splitlines()
        assert [line.split()[0] for line in lines] == ["recipe", *(name for name in RECIPES if "vgg1" in name)]
    assert fukami("list", "resnet-50-fpn").out.splitlines()[1].startswith("faster-rcnn-resnet50-fpn ")
    result = fukami("list", "segnte")
    assert (result.status, result.out) == (2, "")
    assert "unknown recipe 'segnte'; did you mean 'segnet-" in result.err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian"], "'train'"),
        (["train"], "name the recipe first"),
        (["train", "deep-convnt"], "'deep-convnet'"),
        (["train", "./nothing.py"], "no recipe file"),
        (["train", "deep-convnet", "--epoch", "3"], "--epochs"),
        (["train", "deep-convnet", "--epochs", "three"], "three"),
        (["train", "deep-convnet", "--data", "mnits"], "'mnist'"),
        (["train", "deep-convnet", "--device", "cdua"], "'cuda'"),
        (["train", "deep-convnet", "--device", "cuda:99"], "cuda:99"),
        (["train", "deep-convnet", "--precision", "float8"], "float16"),
        (["train", "deep-convnet", "--batch-size", "0"], "batch-size should be at least 1, not 0"),
        (["train", "deep-convnet", "--epochs", "0"], "epochs should be at least 1"),
        (["train", "deep-convnet", "--lr", "-1"], "lr should be at least 0"),
        (["train", "deep-convnet", "--lr", "nan"], "lr should be"),
        (["train", "deep-convnet", "--warmup", "1"], "warmup should be between"),
        (["train", "deep-convnet", "--dropout", "1.5"], "dropout should be between"),
        (["train", "deep-convnet", "--size", "3"], "size should be between 4 and 2048"),
        (["eval", "no-such-run"], "deep-convnet"),
        (["eval"], "at least one run"),
        (["predict", "deep-convnet"], "files"),
        (["predict", "no-such-run", "a.png"], "no-such-run"),
        (["serve"], "at least one run"),
        (["serve", "no-such-run"], "deep-convnet"),
        (["serve", "deep-convnet", "--views", "0"], "at least one view"),
        (["serve", "deep-convnet", "--port", "65536"], "between 0 and 65535"),
        (["import", "params.pkl"], "--out"),
        (["stylize", "a.png", "--style", "b.png", "--style", "c.png", "--out", "x.png"], "--style is specified twice"),
        (["predict", "run", "a.png", "--set", "beam_size=3", "--set", "length_penalty=1"], "--set VALUE VALUE"),
        (["train", "deep-convnet", "--augment", "flip", "--augment=hue"], "--augment is specified twice"),
    ],
)
def test_usage_error_exits_with_2_and_names_the_fix(fukami, arguments, hint):
    result = fukami(*arguments)
    assert result.status == 2, result
    assert hint in result.err
    assert result.out == ""
    assert "Traceback" not in result.err


@pytest.mark.report
def test_train_eval_predict(fukami, digit_files, tmp_path):
    result = fukami("train", "deep-convnet", *QUICK)
    assert result.status == 0, result.err
    (metrics,) = result.json
    assert metrics["run"] == "runs/deep-convnet"
    assert metrics["count"] == 359
    assert metrics["errors"] == round((1 - metrics["accuracy"]) * 359)
    assert "validation accuracy" in result.err
    assert "report: runs/deep-convnet/report.html" in result.err
    run = tmp_path / "runs" / "deep-convnet"
    assert {path.name for path in run.iterdir()} == {
        "weights.safetensors", "best.safetensors", "recipe.json", "metrics.jsonl", "manifest.jsonl", "last.ckpt",
        "report.html",
    }  # fmt: skip
    record = json.loads((run / "recipe.json").read_text())
    assert record["recipe"] == "deep-convnet"
    assert record["fields"]["epochs"] == 1
    assert record["labels"] == list("0123456789")

    (evaluated,) = fukami("eval", "runs/deep-convnet").json
    assert {key: evaluated[key] for key in ("accuracy", "errors", "count")} == {
        key: metrics[key] for key in ("accuracy", "errors", "count")
    }
    assert fukami("eval", "runs/deep-convnet", "--data", "digits").json[0]["count"] == 359

    files = sorted(digit_files.rglob("*.png"))[:3]
    result = fukami("predict", "runs/deep-convnet", *files, "--out", "drawn")
    assert result.status == 0
    for line, file in zip(result.json, files, strict=True):
        assert line["file"] == str(file)
        assert isinstance(line["label"], str)
        assert 0 < line["probability"] <= 1
        assert line["ranking"][0] == {"label": line["label"], "probability": line["probability"]}
        assert sum(entry["probability"] for entry in line["ranking"]) == pytest.approx(1, abs=1e-3)
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert drawn == sorted(["index.html", *(file.name for file in files)])
    Image.open(tmp_path / "drawn" / files[0].name).verify()


def test_each_run_gets_its_own_folder(fukami, tmp_path):
    for expected in ("runs/deep-convnet", "runs/deep-convnet-2", "runs/deep-convnet-3"):
        assert fukami("train", "deep-convnet", *QUICK).json[0]["run"] == expected
    resumed = fukami("train", "deep-convnet", "--resume")
    assert resumed.status == 0, resumed.err
    assert resumed.json[0]["run"] == "runs/deep-convnet-3"


def test_used_folder_is_rejected_unless_resumed(fukami, trained, tmp_path):
    contents = {path.name: path.read_bytes() for path in trained.iterdir()}
    result = fukami("train", "deep-convnet", "--out", trained)
    assert result.status == 2
    assert "--resume" in result.err
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == contents

    other = fukami("train", "deep-convnet", "--out", trained, "--resume", "--lr", "0.5")
    assert other.status == 2
    assert "lr 0.002, not 0.5" in other.err

    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("precious")
    for arguments in ([], ["--resume"]):
        assert fukami("train", "deep-convnet", "--out", "used", *arguments).status == 2
    assert (tmp_path / "used" / "thesis.txt").read_text() == "precious"
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["thesis.txt"]


def test_resuming_a_finished_run_returns_its_result(fukami, trained):
    weights = (trained / "weights.safetensors").read_bytes()
    result = fukami("train", "deep-convnet", "--out", trained, "--resume")
    assert result.status == 0, result.err
    assert result.json[0]["accuracy"] == fukami("eval", trained).json[0]["accuracy"]
    assert (trained / "weights.safetensors").read_bytes() == weights


def test_bundled_weights_predict_without_setup(fukami, digit_files):
    """Digits of another dataset, enlarged and dark on light, are mostly classified correctly."""
    files = sorted(digit_files.rglob("*.png"))
    result = fukami("predict", "deep-convnet", digit_files)
    assert result.status == 0
    assert [line["file"] for line in result.json] == list(map(str, files))
    num_correct = sum(line["label"] == file.parent.name for line, file in zip(result.json, files, strict=True))
    assert num_correct >= 0.85 * len(files)


def test_bad_file_is_named_and_the_others_are_predicted(fukami, digit_files, tmp_path):
    valid = sorted(digit_files.rglob("*.png"))[:2]
    (tmp_path / "text.png").write_text("not an image")
    result = fukami("predict", "deep-convnet", valid[0], "text.png", "missing.png", valid[1])
    assert result.status == 1
    assert [line["file"] for line in result.json] == list(map(str, valid))
    assert "text.png" in result.err
    assert "missing.png" in result.err
    assert "Traceback" not in result.err


def test_drawings_of_files_with_equal_names_are_all_kept(fukami, digit_files, tmp_path):
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(next(digit_files.rglob("*.png")).read_bytes())
    assert fukami("predict", "deep-convnet", "a/x.png", "b/x.png", "c/x.png", "--out", "drawn").status == 0
    drawn = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert drawn == {"x.png", "x-2.png", "x-3.png", "index.html"}


def test_ensemble_averages_probabilities(fukami, trained, digit_files, tmp_path):
    """Compared with the average of the members' predictions."""
    fukami("train", "deep-convnet", *QUICK, "--seed", "1", "--out", "second")
    file = next(digit_files.rglob("*.png"))
    members = [fukami("predict", run, file).json[0]["ranking"] for run in (trained, "second")]
    ensemble = fukami("predict", trained, "second", file).json[0]["ranking"]
    for entry in ensemble:
        probabilities = [next(e["probability"] for e in ranking if e["label"] == entry["label"]) for ranking in members]
        assert entry["probability"] == pytest.approx(sum(probabilities) / 2, abs=1.5e-4)
    metrics = fukami("eval", trained, "second").json[0]
    assert metrics["count"] == 359
    assert metrics["runs"] == [str(trained), "second"]


def test_ensemble_with_different_inputs_is_rejected(fukami, trained):
    fukami("train", "deep-convnet", *QUICK, "--size", "20", "--out", "small")
    result = fukami("eval", trained, "small")
    assert result.status == 2
    assert "same preprocessing" in result.err


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_eval_at_each_precision(fukami, trained, precision):
    exact = fukami("eval", trained).json[0]
    result = fukami("eval", trained, "--precision", precision).json[0]
    assert result["precision"] == precision
    assert abs(result["errors"] - exact["errors"]) <= 3


def test_eval_on_folders(fukami, trained, digit_files, tmp_path):
    """A new dataset is evaluated as a whole, with classes matched by name; unknown classes are named."""
    assert fukami("eval", trained, "--data", digit_files).json[0]["count"] == 40
    folder = tmp_path / "some"
    for label in ("3", "7"):
        (folder / label).mkdir(parents=True)
        for file in (digit_files / label).iterdir():
            (folder / label / file.name).write_bytes(file.read_bytes())
    result = fukami("eval", trained, "--data", "some")
    assert result.json[0]["count"] == len(list(folder.rglob("*.png")))
    assert result.json[0]["accuracy"] > 0.5
    (folder / "7").rename(folder / "cat")
    result = fukami("eval", trained, "--data", "some")
    assert result.status == 2
    assert "cat" in result.err


def test_train_on_a_folder_of_color_images(fukami, random, tmp_path):
    """Red and blue images with train and test folders: learned quickly, evaluated on the test split."""
    for split, count in (("train", 30), ("test", 8)):
        for label, channel in (("red", 0), ("blue", 2)):
            folder = tmp_path / "colors" / split / label / "nested"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 90, (40, 60, 3), dtype="uint8")
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / f"{index}.jpg")
    (tmp_path / "colors" / "train" / "red" / "unreadable.jpg").write_bytes(b"\xff\xd8\xff")
    arguments = ["--data", "colors", "--size", "32", "--channels", "3", "--epochs", "15", "--batch-size", "20"]
    result = fukami("train", "deep-convnet", *arguments, "--out", "run")
    assert result.status == 0, result.err
    assert result.json[0]["count"] == 16
    assert result.json[0]["accuracy"] == 1
    assert fukami("predict", "run", tmp_path / "colors/test/red/nested/0.jpg").json[0]["label"] == "red"


def test_custom_recipe(fukami, tmp_path):
    """A custom recipe is trained and evaluated like a built-in one."""
    source = (
        "from dataclasses import dataclass\n"
        "from fukami.classification.deep_convnet import DeepConvNet\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class CustomRecipe(DeepConvNet):\n"
        '    """Custom recipe."""\n'
        "    epochs: int = 1\n"
        '    """Number of epochs."""\n'
    )
    (tmp_path / "my_recipe.py").write_text(source)
    result = fukami("train", "./my_recipe.py", "--lr", "3e-4")
    assert result.status == 0, result.err
    assert result.json[0]["run"] == "runs/my-recipe"
    evaluated = fukami("eval", "runs/my-recipe", "--recipe", "my_recipe.py")
    assert evaluated.json[0]["accuracy"] == result.json[0]["accuracy"]

    (tmp_path / "unreadable.py").write_text("import nothing_of_that_name")
    result = fukami("train", "./unreadable.py")
    assert result.status == 1
    assert "nothing_of_that_name" in result.err


def test_five_files_lead_from_the_command_to_the_loss(fukami, tmp_path):
    """The call stack of the computation of the loss passes through them only."""
    (tmp_path / "deep.py").write_text(
        "import traceback\n"
        "from fukami.classification.deep_convnet import DeepConvNet\n"
        "class Deep(DeepConvNet):\n"
        "    def build_task(self, labels):\n"
        "        task = super().build_task(labels)\n"
        "        def forward(images):\n"
        "            print(*(f.filename.rpartition('/fukami/')[2] for f in traceback.extract_stack()))\n"
        "            raise SystemExit(0)\n"
        "        task.model.forward = forward\n"
        "        return task\n"
    )
    result = fukami("train", "./deep.py")
    assert result.status == 0, result.err
    files = [file for file in dict.fromkeys(result.out.split()) if not file.startswith("/")]
    files = [file for file in files if (Path(package.__file__).parent / file).is_file()]
    assert files == [
        "cli/main.py",
        "cli/train.py",
        "engine/train.py",
        "classification/task.py",
        "engine/task.py",
    ]


def test_python_api(trained, digit_files, tmp_path):
    recipe = package.get_recipe("deep-convnet")(epochs=1)
    metrics = package.train(recipe, tmp_path / "run").metrics
    task = load_task(tmp_path / "run")
    evaluated = task.evaluate(recipe.load_data().val)
    assert evaluated["errors"] == metrics["errors"]
    image = Image.open(next(digit_files.rglob("*.png")))
    (prediction,) = task.predict([image])
    assert set(prediction) == {"label", "probability", "ranking"}
    assert load_file(tmp_path / "run" / "weights.safetensors").keys() >= {"model.0.weight"}


@pytest.mark.parametrize("arguments", [["--version"], ["list"], ["no-such-command"]])
@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL, lambda number, frame: None])
def test_signal_handlers_are_those_found(fukami, arguments, handler):
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        interrupt = signal.getsignal(signal.SIGINT)
        fukami(*arguments)
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_closed_output_pipe_gives_no_traceback(trained, digit_files, forked_python):
    command = [forked_python.executable, "-m", "fukami", "predict", str(trained), str(digit_files)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert "Traceback" not in error


def test_an_unexpected_error_has_a_traceback_only_if_it_is_requested(fukami, monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("fukami.engine.export.export_run", fail)
    command = ("export", "deep-convnet", "--to", "float16")
    result = fukami(*command)
    assert result.status == 1
    assert "ZeroDivisionError: division by zero" in result.err
    assert "this is a bug; FUKAMI_TRACEBACK=1 shows the traceback" in result.err
    monkeypatch.setenv("FUKAMI_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        fukami(*command)


def test_shards_of_a_size_and_their_index(fukami, digit_files):
    few, many = (
        fukami("shard", digit_files, name, *options).json[0]
        for name, options in (("few", ()), ("many", ("--megabytes", "0.002")))
    )
    assert len([*Path("many").glob("*.tar")]) > len([*Path("few").glob("*.tar")])
    assert few["train"] == many["train"]
    content = Path("few/index.json").read_text()
    Path("few/index.json").unlink()
    assert fukami("shard", "few", "--index").status == 0
    assert Path("few/index.json").read_text() == content
