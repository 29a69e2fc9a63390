"""The command line is a contract: names, formats, exit statuses."""

import json
import re
import subprocess
import sys

import pytest
from PIL import Image
from safetensors.torch import load_file

import fukami as package
from fukami.catalogue import RECIPES

COMMANDS = [
    "doctor", "shard", "show", "propose", "list", "train", "find-lr", "board", "eval", "predict", "explain", "play",
    "stylize", "export", "serve", "import", "bench",
]  # fmt: skip
QUICK = ["--epochs", "1", "--batch-size", "100"]


def test_help_names_every_command(fukami):
    answer = fukami("--help")
    assert answer.status == 0
    assert [line.split()[0] for line in answer.out.splitlines() if line.startswith("  ")] == COMMANDS
    assert [line for line in answer.out.splitlines() if line.endswith(":")] == [
        "data:",
        "training:",
        "models:",
        "tools:",
    ]
    assert max(map(len, answer.out.splitlines())) <= 80
    assert fukami().out == answer.out


def test_version(fukami):
    assert fukami("--version").out == "fukami 0.1.0\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(fukami, command):
    answer = fukami(command, "--help")
    assert answer.status == 0
    assert command in answer.out


def test_options_of_train_are_these(fukami):
    """A snapshot: whoever adds or renames an option of a run sees it here."""
    text = fukami("train", "deep-convnet", "--help").out
    options = {word.strip(",") for word in text.split() if re.match("--[a-z]", word)}
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
    fields = "seed data holdout memory-limit max-broken size channels epochs eval-every batch-size accumulate "
    fields += "activation-checkpointing no-activation-checkpointing optimizer lr lr-scaling clip-norm momentum "
    fields += "weight-decay schedule drop-factor warmup cycles label-smoothing ema-decay augment balance init "
    fields += "freeze no-freeze layer-lr-decay quantize dropout convention widths hidden batch-norm "
    fields += "no-batch-norm"
    assert options == run | {f"--{field}" for field in fields.split()}


def test_list(fukami):
    answer = fukami("list")
    assert answer.status == 0
    (row,) = [line for line in answer.out.splitlines() if line.startswith("deep-convnet ")]
    assert all(fact in row for fact in ("classification", "2016", "99.35 %", "Saitoh"))
    assert "resnet152 " not in answer.out  # without a result of ours
    every = fukami("list", "--all").out.splitlines()
    assert [line.split()[0] for line in every[1:]] == list(RECIPES)


@pytest.mark.parametrize(
    ("words", "hint"),
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
        (["stylize", "a.png", "--style", "b.png", "--style", "c.png", "--out", "x.png"], "--style is given twice"),
        (["predict", "run", "a.png", "--set", "beam_size=3", "--set", "length_penalty=1"], "--set VALUE VALUE"),
        (["train", "deep-convnet", "--augment", "flip", "--augment=hue"], "--augment is given twice"),
    ],
)
def test_wrong_usage_leaves_with_2_and_says_what_is_right(fukami, words, hint):
    answer = fukami(*words)
    assert answer.status == 2, answer
    assert hint in answer.err
    assert answer.out == ""
    assert "Traceback" not in answer.err


def test_train_eval_predict(fukami, digit_files, tmp_path):
    answer = fukami("train", "deep-convnet", *QUICK)
    assert answer.status == 0, answer.err
    (result,) = answer.json
    assert result["run"] == "runs/deep-convnet"
    assert result["count"] == 359
    assert result["errors"] == round((1 - result["accuracy"]) * 359)
    assert "test accuracy" in answer.err
    assert "report: runs/deep-convnet/report.html" in answer.err
    run = tmp_path / "runs" / "deep-convnet"
    assert {path.name for path in run.iterdir()} == {
        "weights.safetensors", "recipe.json", "metrics.jsonl", "manifest.jsonl", "last.ckpt",
        "report.html",
    }  # fmt: skip
    record = json.loads((run / "recipe.json").read_text())
    assert record["recipe"] == "deep-convnet"
    assert record["fields"]["epochs"] == 1
    assert record["labels"] == list("0123456789")

    (judged,) = fukami("eval", "runs/deep-convnet").json
    assert {key: judged[key] for key in ("accuracy", "errors", "count")} == {
        key: result[key] for key in ("accuracy", "errors", "count")
    }
    assert fukami("eval", "runs/deep-convnet", "--data", "digits").json[0]["count"] == 359

    files = sorted(digit_files.rglob("*.png"))[:3]
    answer = fukami("predict", "runs/deep-convnet", *files, "--out", "drawn")
    assert answer.status == 0
    for line, file in zip(answer.json, files, strict=True):
        assert line["file"] == str(file)
        assert isinstance(line["label"], str)
        assert 0 < line["probability"] <= 1
        assert line["ranking"][0] == {"label": line["label"], "probability": line["probability"]}
        assert sum(entry["probability"] for entry in line["ranking"]) == pytest.approx(1, abs=1e-4)
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert drawn == sorted(["index.html", *(file.name for file in files)])
    Image.open(tmp_path / "drawn" / files[0].name).verify()


def test_each_run_gets_a_folder_of_its_own(fukami, pageless, tmp_path):
    for expected in ("runs/deep-convnet", "runs/deep-convnet-2", "runs/deep-convnet-3"):
        assert fukami("train", "deep-convnet", *QUICK).json[0]["run"] == expected
    resumed = fukami("train", "deep-convnet", "--resume")
    assert resumed.status == 0, resumed.err
    assert resumed.json[0]["run"] == "runs/deep-convnet-3"


def test_a_folder_in_use_is_refused_unless_resumed(fukami, trained, tmp_path):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    answer = fukami("train", "deep-convnet", "--out", trained)
    assert answer.status == 2
    assert "--resume" in answer.err
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before

    other = fukami("train", "deep-convnet", "--out", trained, "--resume", "--lr", "0.5")
    assert other.status == 2
    assert "lr 0.002, not 0.5" in other.err

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for words in ([], ["--resume"]):
        assert fukami("train", "deep-convnet", "--out", "mine", *words).status == 2
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_resume_of_a_finished_run_tells_its_result_again(fukami, trained):
    weights = (trained / "weights.safetensors").read_bytes()
    answer = fukami("train", "deep-convnet", "--out", trained, "--resume")
    assert answer.status == 0, answer.err
    assert answer.json[0]["accuracy"] == fukami("eval", trained).json[0]["accuracy"]
    assert (trained / "weights.safetensors").read_bytes() == weights


def test_shipped_weights_answer_right_after_installation(fukami, digit_files):
    """Digits of another data set, drawn large and dark on light, are mostly read right."""
    files = sorted(digit_files.rglob("*.png"))
    answer = fukami("predict", "deep-convnet", digit_files)
    assert answer.status == 0
    assert [line["file"] for line in answer.json] == list(map(str, files))
    right = sum(line["label"] == file.parent.name for line, file in zip(answer.json, files, strict=True))
    assert right >= 0.85 * len(files)


def test_a_bad_file_among_good_ones_is_named_and_the_rest_answered(fukami, digit_files, tmp_path):
    good = sorted(digit_files.rglob("*.png"))[:2]
    (tmp_path / "text.png").write_text("not an image")
    answer = fukami("predict", "deep-convnet", good[0], "text.png", "missing.png", good[1])
    assert answer.status == 1
    assert [line["file"] for line in answer.json] == list(map(str, good))
    assert "text.png" in answer.err
    assert "missing.png" in answer.err
    assert "Traceback" not in answer.err


def test_drawn_answers_of_files_with_one_name_are_all_kept(fukami, digit_files, tmp_path):
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(next(digit_files.rglob("*.png")).read_bytes())
    assert fukami("predict", "deep-convnet", "a/x.png", "b/x.png", "c/x.png", "--out", "drawn").status == 0
    drawn = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert drawn == {"x.png", "x-2.png", "x-3.png", "index.html"}


def test_ensemble_averages_probabilities(fukami, trained, digit_files, tmp_path):
    """Against the average worked out by hand from the members' own answers."""
    fukami("train", "deep-convnet", *QUICK, "--seed", "1", "--out", "second")
    file = next(digit_files.rglob("*.png"))
    members = [fukami("predict", run, file).json[0]["ranking"] for run in (trained, "second")]
    together = fukami("predict", trained, "second", file).json[0]["ranking"]
    for entry in together:
        each = [next(e["probability"] for e in ranking if e["label"] == entry["label"]) for ranking in members]
        assert entry["probability"] == pytest.approx(sum(each) / 2, abs=1e-5)
    judged = fukami("eval", trained, "second").json[0]
    assert judged["count"] == 359
    assert judged["runs"] == [str(trained), "second"]


def test_ensemble_of_strangers_is_refused(fukami, trained):
    fukami("train", "deep-convnet", *QUICK, "--size", "20", "--out", "small")
    answer = fukami("eval", trained, "small")
    assert answer.status == 2
    assert "same way" in answer.err


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_eval_at_each_precision(fukami, trained, precision):
    exact = fukami("eval", trained).json[0]
    answer = fukami("eval", trained, "--precision", precision).json[0]
    assert answer["precision"] == precision
    assert abs(answer["errors"] - exact["errors"]) <= 3


def test_eval_on_folders(fukami, trained, digit_files, tmp_path):
    """Data new to the run are judged whole; classes are matched by name; unknown classes are named."""
    assert fukami("eval", trained, "--data", digit_files).json[0]["count"] == 40
    some = tmp_path / "some"
    for label in ("3", "7"):
        (some / label).mkdir(parents=True)
        for file in (digit_files / label).iterdir():
            (some / label / file.name).write_bytes(file.read_bytes())
    answer = fukami("eval", trained, "--data", "some")
    assert answer.json[0]["count"] == len(list(some.rglob("*.png")))
    assert answer.json[0]["accuracy"] > 0.5
    (some / "7").rename(some / "cat")
    answer = fukami("eval", trained, "--data", "some")
    assert answer.status == 2
    assert "cat" in answer.err


def test_train_on_a_folder_of_colour_images(fukami, random, tmp_path):
    """Red against blue, in parts of their own: learned at once, and judged on the test part."""
    for part, count in (("train", 30), ("test", 8)):
        for label, channel in (("red", 0), ("blue", 2)):
            folder = tmp_path / "colours" / part / label / "nested"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 90, (40, 60, 3), dtype="uint8")
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    (tmp_path / "colours" / "train" / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    words = ["--data", "colours", "--size", "32", "--channels", "3", "--epochs", "15", "--batch-size", "20"]
    answer = fukami("train", "deep-convnet", *words, "--out", "run")
    assert answer.status == 0, answer.err
    assert answer.json[0]["count"] == 16
    assert answer.json[0]["accuracy"] == 1
    assert fukami("predict", "run", tmp_path / "colours/test/red/nested/0.jpg").json[0]["label"] == "red"


def test_private_recipe(fukami, tmp_path):
    """A recipe of one's own needs no fork; its run is judged like any other."""
    source = (
        "from dataclasses import dataclass\n"
        "from fukami.classification.deep_convnet import DeepConvNet\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(DeepConvNet):\n"
        '    """Mine."""\n'
        "    epochs: int = 1\n"
        '    """Passes."""\n'
    )
    (tmp_path / "my_recipe.py").write_text(source)
    answer = fukami("train", "./my_recipe.py", "--lr", "3e-4")
    assert answer.status == 0, answer.err
    assert answer.json[0]["run"] == "runs/my-recipe"
    judged = fukami("eval", "runs/my-recipe", "--recipe", "my_recipe.py")
    assert judged.json[0]["accuracy"] == answer.json[0]["accuracy"]

    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    answer = fukami("train", "./broken.py")
    assert answer.status == 1
    assert "nothing_of_that_name" in answer.err


def test_few_frames_between_the_command_and_the_loss(fukami, tmp_path):
    """At most 5 frames of our code, in 4 files, from the command to the line that computes the loss."""
    (tmp_path / "deep.py").write_text(
        "import traceback\n"
        "from fukami.classification.deep_convnet import DeepConvNet\n"
        "class Deep(DeepConvNet):\n"
        "    def build_task(self, labels):\n"
        "        task = super().build_task(labels)\n"
        "        original = task.model.forward\n"
        "        def forward(images):\n"
        "            ours = [f for f in traceback.extract_stack() if '/fukami/' in f.filename]\n"
        "            print(len(ours), len({f.filename for f in ours}))\n"
        "            raise SystemExit(0)\n"
        "        task.model.forward = forward\n"
        "        return task\n"
    )
    answer = fukami("train", "./deep.py")
    assert answer.status == 0, answer.err
    frames, files = map(int, answer.out.split())
    assert (frames, files) == (5, 4)


def test_python_is_as_short(trained, digit_files, tmp_path):
    recipe = package.get_recipe("deep-convnet")(epochs=1)
    result = package.train(recipe, tmp_path / "run")
    task = package.load(tmp_path / "run")
    judged = task.evaluate(recipe.load_data().val)
    assert judged["errors"] == result["errors"]
    image = Image.open(next(digit_files.rglob("*.png")))
    (answer,) = task.predict([image])
    assert set(answer) == {"label", "probability", "ranking"}
    assert load_file(tmp_path / "run" / "weights.safetensors").keys() >= {"model.0.weight"}


def test_a_reader_that_stops_reading_gets_no_traceback(trained, digit_files):
    command = [sys.executable, "-m", "fukami", "predict", str(trained), str(digit_files)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert "Traceback" not in error
