"""Tests of malicious runs: none of their code runs, and nothing outside their folder is read, written or downloaded."""

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import typing
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file, save, save_file

import fukami as package
from fukami.classification import plots as classification_plots
from fukami.classification.deep_convnet import DeepConvNet
from fukami.detection import rcnn
from fukami.engine import checkpoint, report, run_folder, run_weights
from fukami.engine.checkpoint import decode_checkpoint, encode_checkpoint
from fukami.engine.load_run import load_task
from fukami.engine.recipe import (
    _matches_type,
    build_recipe,
    get_field_names,
    get_recipe,
    identify_recipe,
    list_recipes,
)
from fukami.errors import Error, UsageError
from fukami.leaderboard import page as leaderboard_page
from fukami.leaderboard import runs as leaderboard_runs
from fukami.leaderboard import table as leaderboard_table

SOURCE = """
from dataclasses import dataclass
from fukami.classification.deep_convnet import DeepConvNet

@dataclass(frozen=True, kw_only=True)
class Mine(DeepConvNet):
    '''A custom recipe.'''
"""


def copy_run(trained, folder):
    """Copy a run, so that a test can change its files."""
    shutil.copytree(trained, folder)
    return folder


def change_record(run, **changes):
    """Change values in ``recipe.json``."""
    path = run / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def custom_run(fukami, trained, tmp_path):
    """Run of the custom recipe ``mine.py``, converted from a trained run."""
    (tmp_path / "mine.py").write_text(SOURCE)
    run = copy_run(trained, tmp_path / "run")
    change_record(run, recipe="mine.py", recipe_sha256=hashlib.sha256(SOURCE.encode()).hexdigest())
    return run


COMMANDS = (
    ("predict", "{run}", "{image}"),
    ("eval", "{run}"),
    ("export", "{run}", "--to", "float16", "--out", "exported"),
    ("explain", "{run}"),
    ("explain", "{run}", "{image}", "--out", "page"),
    ("serve", "{run}", "--port", "0"),
    ("board", "."),
    ("train", "deep-convnet", "--out", "{run}", "--resume"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    "recipe", ["run/evil.py", "./run/../run/evil.py", "/proc/self/cwd/run/evil.py", "evil.py", "{run}/evil.py", "evil"]
)
def test_no_command_runs_the_recipe_file_that_a_run_names(command, recipe, fukami, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    evil = "import os, pathlib\nos.environ['HARMED'] = pathlib.Path('harmed').write_text('') or 'yes'\n"
    for path in (run / "evil.py", tmp_path / "evil.py"):
        path.write_text(evil + SOURCE)
    digest = hashlib.sha256((evil + SOURCE).encode()).hexdigest()
    values = {"run": "run", "image": str(next(tmp_path.parent.glob("*/*/*.png"), "none.png"))}
    for changes in ({}, {"recipe_sha256": digest}, {"recipe_sha256": None}):
        change_record(run, recipe=recipe.format(run=run), **changes)
        result = fukami(*(argument.format(**values) for argument in command))
        assert not (tmp_path / "harmed").exists(), command
        assert "HARMED" not in os.environ
        expected = 0 if command[0] == "board" else 1 if not changes and command[0] != "train" else 2
        assert result.status == expected, result.err
        assert "Traceback" not in result.err


@pytest.mark.parametrize("name", list_recipes())
def test_no_field_of_a_run_executes_a_file(name, trained, tmp_path):
    """Each field that is a text or a sequence of texts has the path of a recipe file."""
    run = copy_run(trained, tmp_path / "run")
    evil = tmp_path / "evil.py"
    evil.write_text("import os\nos.environ['HARMED'] = 'yes'\n" + SOURCE)
    recipe = get_recipe(name)
    kinds = typing.get_type_hints(recipe)
    labels = ["<end>", "<begin>", "<unknown>", "a"]  # also valid as the vocabulary of captions
    for field in sorted(get_field_names(recipe)):
        if kinds[field] in (str, tuple[str, ...]):
            change_record(
                run, recipe=name, fields={field: str(evil) if kinds[field] is str else [str(evil)]}, labels=labels
            )
            with contextlib.suppress(Error):
                load_task(run)
            assert "HARMED" not in os.environ, field


def test_commands_need_the_file_of_a_custom_recipe(custom_run, fukami, tmp_path):
    image = tmp_path / "black.png"
    from PIL import Image

    Image.new("L", (28, 28)).save(image)
    for command in (["eval", "run"], ["predict", "run", image], ["explain", "run"], ["explain", "run", image]):
        result = fukami(*command)
        assert result.status == 2
        assert "specify the recipe file with --recipe mine.py" in result.err
        result = fukami(*command, "--recipe", "mine.py")
        assert result.status == 0, result.err
    assert fukami("export", "run", "--to", "float16", "--out", "half", "--recipe", "mine.py").status == 0
    assert fukami("eval", "half", "--recipe", "mine.py").status == 0
    with pytest.raises(UsageError, match="code is never loaded from a run"):
        load_task(custom_run)
    assert load_task(custom_run, recipe=tmp_path / "mine.py").labels == tuple("0123456789")
    assert load_task(custom_run, recipe=package.get_recipe(str(tmp_path / "mine.py"))).labels == tuple("0123456789")


def test_another_recipe_than_the_recorded_one_is_rejected(custom_run, fukami, tmp_path):
    """The error names both digests, and the other file is not executed."""
    recorded = hashlib.sha256(SOURCE.encode()).hexdigest()
    other = f"open({str(tmp_path / 'harmed')!r}, 'w')\n{SOURCE}"
    (tmp_path / "other.py").write_text(other)
    for command in (["eval", "run", "--recipe", "other.py"], ["export", "run", "--to", "onnx", "--recipe", "other.py"]):
        result = fukami(*command)
        assert result.status == 2
        assert recorded in result.err
        assert hashlib.sha256(other.encode()).hexdigest() in result.err
    assert not (tmp_path / "harmed").exists()
    with pytest.raises(UsageError, match=recorded):
        load_task(custom_run, recipe=DeepConvNet)
    with pytest.raises(UsageError, match="not a custom recipe"):
        load_task("deep-convnet", recipe=tmp_path / "mine.py")


def test_resuming_an_edited_recipe_is_rejected(fukami, tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    assert fukami("train", "./mine.py", "--epochs", "1", "--batch-size", "200", "--out", "run").status == 0
    assert fukami("train", "./mine.py", "--out", "run", "--resume").status == 0
    (tmp_path / "mine.py").write_text(SOURCE + "# edited\n")
    result = fukami("train", "./mine.py", "--out", "run", "--resume")
    assert result.status == 2
    for text in (SOURCE, SOURCE + "# edited\n"):
        assert hashlib.sha256(text.encode()).hexdigest() in result.err


def test_a_custom_recipe_may_load_another_run(custom_run, trained, tmp_path):
    """Its ``build_task`` loads the network of a teacher."""
    method = f"""
    def build_task(self, labels):
        import fukami
        fukami.load({str(trained)!r}, device="cpu")
        return super().build_task(labels)
"""
    (tmp_path / "mine.py").write_text(SOURCE + method)
    change_record(custom_run, recipe_sha256=hashlib.sha256((SOURCE + method).encode()).hexdigest())
    tasks = []
    thread = threading.Thread(
        target=lambda: tasks.append(load_task(custom_run, device="cpu", recipe=tmp_path / "mine.py")), daemon=True
    )
    thread.start()
    thread.join(60)
    assert [task.labels for task in tasks] == [tuple("0123456789")]


def test_classes_of_a_module_that_was_edited_and_reloaded_have_the_digests_of_their_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    recipes, digests, name = [], [], "reloaded_recipe"
    for text in (SOURCE, SOURCE + "# edited\n"):
        (tmp_path / f"{name}.py").write_text(text)
        module = importlib.reload(sys.modules[name]) if name in sys.modules else importlib.import_module(name)
        recipes.append(module.Mine)
        digests.append(hashlib.sha256(text.encode()).hexdigest())
    assert [identify_recipe(recipe)["recipe_sha256"] for recipe in recipes] == digests
    del sys.modules[name]


def test_a_recipe_of_a_notebook_is_passed_as_a_class(trained, tmp_path):
    """The recipe is defined in no file, so it has no digest."""
    namespace = {"__name__": "notebook"}
    module = type(torch)("notebook")

    sys.modules["notebook"] = module
    try:
        exec(SOURCE, namespace)
        module.Mine = recipe = namespace["Mine"]
        assert identify_recipe(recipe) == {"recipe": "Mine", "recipe_sha256": None}
        run = copy_run(trained, tmp_path / "run")
        change_record(run, **identify_recipe(recipe))
        assert load_task(run, recipe=recipe).labels == tuple("0123456789")
        (tmp_path / "mine.py").write_text(SOURCE)
        with pytest.raises(UsageError, match="pass the class"):
            load_task(run, recipe=tmp_path / "mine.py")
    finally:
        del sys.modules["notebook"]


@pytest.mark.parametrize(
    ("message", "convert"),
    [
        ("not finite", lambda value: value.fill_(float("nan"))),
        ("not finite", lambda value: value.index_fill_(0, torch.tensor(0), float("inf"))),
        ("complex64", lambda value: value.to(torch.complex64)),
        ("float64", lambda value: value.double()),
        ("int64", lambda value: value.long()),
        (r"instead of \(10, 50\)", lambda value: value[:, :-1].contiguous()),
    ],
)
def test_mismatched_weights_are_rejected(message, convert, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    tensors = load_file(run_weights.locate_weights(run))
    last = [key for key, value in tensors.items() if value.shape == (10, 50)]
    save_file(tensors | {last[0]: convert(tensors[last[0]])}, run_weights.locate_weights(run))
    with pytest.raises(Error, match=f"{last[0]}.*{message}"):
        load_task(run)


@pytest.mark.parametrize("file", ["weights.safetensors", "metrics.jsonl", "last.ckpt", "elsewhere"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_links_and_pipes_in_a_run_are_rejected(file, kind, fukami, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (run / file).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(run / file)
    else:
        (run / file).symlink_to(outside if kind == "link" else tmp_path / "nothing")
    for command in (["eval", "run"], ["train", "deep-convnet", "--out", "run", "--resume"]):
        result = fukami(*command)
        assert result.status == 1
        assert f"run/{file}" in result.err
    if file != "metrics.jsonl" or kind == "link":  # otherwise there is no run to rank
        assert fukami("board", ".").status == 0
    assert outside.read_text() == "untouched"
    assert not (tmp_path / "nothing").exists()


def test_links_of_a_run_with_initial_weights_are_rejected(fukami, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    weights = run_weights.locate_weights(run)
    weights.rename(tmp_path / "outside.safetensors")
    weights.symlink_to(tmp_path / "outside.safetensors")
    result = fukami("train", "deep-convnet", "--init", "run", "--epochs", "1", "--out", "new")
    assert result.status == 1
    assert f"{weights.name} is a link" in result.err


def test_a_temporary_file_that_is_renamed_meanwhile_is_no_error(trained, tmp_path, monkeypatch):
    """A training may write a checkpoint while its run is evaluated."""
    run = copy_run(trained, tmp_path / "run")
    iterate = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: [*iterate(path), path / ".last.ckpt.0.tmp"])
    run_folder.check_run_files(run)


@pytest.mark.parametrize("change", ["labels", "stored labels", "outputs", "size"])
def test_an_onnx_file_of_another_run_is_rejected(change, fukami, trained, tmp_path):
    copy_run(trained, tmp_path / "run")
    assert fukami("export", "run", "--to", "onnx", "--out", "exported").status == 0
    file = tmp_path / "exported" / "model.onnx"
    if change == "labels":
        change_record(tmp_path / "exported", labels=list("abcdefghijk"))
    elif change in ("stored labels", "outputs"):
        model = onnx.load(file)
        for entry in model.metadata_props:
            if entry.key == "labels":
                entry.value = "[" * 100_000 if change == "stored labels" else "null"
        onnx.save(model, file)
        if change == "outputs":
            change_record(tmp_path / "exported", labels=list("abcdefghijk"))
    else:  # a sparse file, which takes no disk space
        with file.open("r+b") as content:
            content.truncate(20 << 30)
    with pytest.raises(Error, match="more than the limit" if change == "size" else "has other classes than its recipe"):
        load_task(tmp_path / "exported")


def test_an_exported_run_is_not_resumed(fukami, trained, tmp_path):
    copy_run(trained, tmp_path / "run")
    assert fukami("export", "run", "--to", "float16", "--out", "exported").status == 0
    result = fukami("train", "deep-convnet", "--out", "exported", "--resume")
    assert result.status == 2
    assert "exported or imported, so there is no training to resume" in result.err


def test_checkpoints_are_not_written_through_links(fukami, trained, tmp_path):
    """Links may replace files in subfolders."""
    run = copy_run(trained, tmp_path / "run")
    (tmp_path / "outside").write_text("untouched")
    (run / "replay_buffer").mkdir()
    (run / "replay_buffer" / "frames.bin").symlink_to(tmp_path / "outside")
    result = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert result.status == 1
    assert "frames.bin is a link" in result.err


@pytest.fixture
def listener():
    """Address of a local server, and the list of its connections."""
    connections = []
    server = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connections.append(connection)
            connection.close()

    thread = threading.Thread(target=accept)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", connections
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_the_url_of_a_runs_dataset_is_not_contacted(listener, fukami, trained, tmp_path):
    address, connections = listener
    run = copy_run(trained, tmp_path / "run")
    fields = json.loads((run / "recipe.json").read_text())["fields"]
    for spec in (f"{address}/train-{{000..001}}.tar", f"{address}/shards"):
        change_record(run, fields=fields | {"data": spec})
        for command in (
            ["eval", "run"],
            ["export", "run", "--to", "int8", "--out", "exported"],
            ["eval", "run", "--precision", "int8"],
            ["eval", "run", "--precision", "all"],
            ["train", "deep-convnet", "--out", "run", "--resume"],
        ):
            result = fukami(*command)
            assert result.status == 2, result.err
            assert spec in result.err
            assert "--data" in result.err
        assert fukami("board", ".").status == 0
    assert not connections
    assert fukami("eval", "run", "--data", "digits").status == 0


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_the_built_in_dataset_of_a_run_is_not_downloaded(name, fukami, trained, tmp_path, monkeypatch):
    """Only a user downloads it, with --data."""
    downloads = []

    def download(*arguments, **options):
        downloads.append(name)
        raise RuntimeError("no network")

    for dataset in ("MNIST", "CIFAR10", "CIFAR100"):
        monkeypatch.setattr(f"torchvision.datasets.{dataset}", download)
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "data"))
    run = copy_run(trained, tmp_path / "run")
    fields = json.loads((run / "recipe.json").read_text())["fields"]
    change_record(run, fields=fields | {"data": name})
    for command in (
        ["eval", "run"],
        ["export", "run", "--to", "int8", "--out", "exported"],
        ["eval", "run", "--precision", "int8"],
        ["eval", "run", "--precision", "all"],
        ["train", "deep-convnet", "--out", "run", "--resume"],
    ):
        result = fukami(*command)
        assert result.status == 2, result.err
        assert f"use --data {name} (fukami export: --calibration {name})" in result.err
    with pytest.raises(UsageError, match=f"--data {name}"):
        package.load(run).evaluate()
    assert not downloads
    assert "no network" in fukami("eval", "run", "--data", name).err
    assert downloads


def test_the_local_dataset_of_a_run_is_logged(fukami, trained, digit_files, tmp_path, caplog):
    run = copy_run(trained, tmp_path / "run")
    fields = json.loads((run / "recipe.json").read_text())["fields"]
    change_record(run, fields=fields | {"data": str(digit_files)})
    assert fukami("eval", "run").status == 0
    assert f"reading the dataset that the run names: {digit_files}" in caplog.text
    caplog.clear()
    assert fukami("eval", "run", "--data", "digits").status == 0
    assert not caplog.text


def test_a_checkpoint_keeps_values_types_and_memory_layouts(tmp_path):
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state = {
        "step": 3,
        "tensors": [image, torch.zeros(0, 3), torch.tensor(2.5), torch.arange(5, dtype=torch.uint8).bfloat16()],
        "plain": (None, True, -1.5, float("inf"), 2**80, "あ", (), [], {}),
        "optimizer": {0: {"step": 1}, "groups": [{"$tensor": 1}]},
    }
    (tmp_path / "last.ckpt").write_bytes(b"".join(encode_checkpoint(state)))
    loaded = decode_checkpoint(tmp_path / "last.ckpt", torch.device("cpu"))
    for expected, tensor in zip(state.pop("tensors"), loaded.pop("tensors"), strict=True):
        assert torch.equal(expected, tensor)
        assert expected.dtype == tensor.dtype
    assert loaded == state
    with pytest.raises(TypeError, match="not set"):
        encode_checkpoint({"step": {1, 2}})
    (tmp_path / "last.ckpt").write_bytes(b"".join(encode_checkpoint({"step": 1, "image": image})))
    loaded = decode_checkpoint(tmp_path / "last.ckpt", torch.device("cpu"))
    assert loaded["image"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", {}),
        ("task", {"model": {}, "optimizer": {}, "scaler": {}}),
        ("loader", None),
        ("loader", {"position": "far"}),
        ("loader", {"epoch": 0, "position": -3}),
        ("loader", {"epoch": 10**30, "position": 3}),
        ("loader", {"epoch": 0, "position": 1.5}),
        ("log", {"seconds": [], "last": 1, "bytes": -1}),
        ("random", {"python": (1, 2), "numpy": [], "torch": torch.zeros(1)}),
        ("step", -1),
        ("step", "1"),
    ],
)
def test_invalid_values_of_a_checkpoint_are_rejected(key, value, fukami, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    state = decode_checkpoint(run / "last.ckpt", torch.device("cpu"))
    (run / "last.ckpt").write_bytes(b"".join(encode_checkpoint({**state, key: value})))
    result = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert result.status == 1, result.err
    assert "last.ckpt" in result.err
    assert "delete it to restart the run" in result.err
    assert "weights_only" not in result.err


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", True), ("epochs", 1.5), ("epochs", None), ("lr", "1"), ("augment", ["flip", 1]),
        ("augment", "flip"), ("data", 3), ("width", 10**30), ("size", -5), ("size", 0), ("nothing", 1),
    ],
)  # fmt: skip
def test_fields_of_another_type_are_rejected(field, value, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    fields = json.loads((run / "recipe.json").read_text())["fields"]
    change_record(run, fields=fields | {field: value})
    with pytest.raises(Error, match=r"field|network|between|at least"):
        load_task(run)


@pytest.mark.parametrize(
    ("recipe", "fields"),
    [
        ("resnet20", {"size": 2049}), ("vgg16", {"size": 10**6}), ("binary-convnet", {"size": 10**6}),
        ("rcnn-finetune", {"min_size": 10**6, "max_size": 10**6}), ("rcnn", {"size": 10**6}),
        ("faster-rcnn-vgg16", {"min_size": 800, "max_size": 10**6}), ("fcn8s-vgg16", {"max_size": 10**6}),
        ("show-and-tell", {"beam_size": 10**6}), ("show-and-tell", {"max_tokens": 10**6}),
        ("show-and-tell", {"num_captions": 10**6}), ("dqn", {"frame_stack": 10**6}),
    ],
)  # fmt: skip
def test_huge_images_and_searches_are_rejected(recipe, fields):
    """A run could otherwise scale a small image to a huge size."""
    with pytest.raises(UsageError, match="should be between"):
        build_recipe(get_recipe(recipe), fields)


@pytest.mark.parametrize(
    ("recipe", "field", "value"),
    [
        ("deep-convnet", "cycles", 10**9),
        pytest.param("binary-convnet", "hidden", [4] * 100_000, marks=pytest.mark.slow),
        ("neural-style", "size", 30_000),
        ("neural-style", "iterations", 10**9),
        ("dqn", "eval_episodes", 10**9),
        ("alphago-zero", "eval_games", 10**9),
    ],
)
def test_huge_networks_are_rejected(recipe, field, value, trained, tmp_path):
    """A few bytes of recipe.json could otherwise create layers until memory is exhausted."""
    run = copy_run(trained, tmp_path / "run")
    change_record(run, recipe=recipe, fields={field: value})
    with pytest.raises(Error, match=r"more than 50,000 layers|should be between [01] and "):
        load_task(run)


def test_long_class_names_are_rejected(trained, tmp_path):
    """Each would be measured once per character where it is drawn."""
    run = copy_run(trained, tmp_path / "run")
    labels = json.loads((run / "recipe.json").read_text())["labels"]
    change_record(run, labels=["a" * 1001, *labels[1:]])
    with pytest.raises(Error, match=r"a class name of more than 1,000 characters"):
        load_task(run)


def test_sparse_weight_files_are_not_loaded(trained, tmp_path):
    """A sparse file of eight gigabytes takes no disk space; its shapes are checked before it is read."""
    import resource

    run = copy_run(trained, tmp_path / "run")
    header = {"model.0.weight": {"dtype": "F32", "shape": [2**31], "data_offsets": [0, 2**33]}}
    text = json.dumps(header).encode()
    with run_weights.locate_weights(run).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2**33)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Error, match=r"model\.0\.weight is \(2147483648,\) instead of"):
        load_task(run)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


def test_a_checkpoint_beyond_the_last_step_is_rejected(fukami, trained, tmp_path):
    """The log of the run could otherwise become the result of a run that never trained."""
    run = copy_run(trained, tmp_path / "run")
    state = decode_checkpoint(run / "last.ckpt", torch.device("cpu"))
    (run / "last.ckpt").write_bytes(b"".join(encode_checkpoint({**state, "step": state["step"] + 1})))
    result = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert result.status == 1
    assert "and the run has" in result.err


def test_predictions_print_no_control_characters(fukami, trained, digit_files, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    change_record(run, labels=[f"\x9b1m{number}" for number in range(10)])
    result = fukami("predict", "run", next(digit_files.rglob("*.png")))
    assert result.status == 0
    assert "\x9b" not in result.out
    assert result.json[0]["label"].startswith("\x9b1m")


def test_field_types_are_matched():
    assert _matches_type((1, 2), tuple[int, ...])
    assert _matches_type((1, 2.5), tuple[int, float])
    assert not _matches_type((1, 2, 3), tuple[int, float])
    assert not _matches_type(1, tuple[int, ...])
    assert _matches_type(None, int | None)
    assert not _matches_type(False, int)
    assert _matches_type(1, float)


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 0, "phase": "eval", "accuracy": 0.5}',
        '{"step": 1e999, "phase": "eval", "accuracy": 0.5}',
        f'{{"step": {10**400}, "phase": "eval", "accuracy": 0.5}}',
        f'{{"step": 1, "phase": "eval", "accuracy": {10**400}}}',
        '{"step": 1, "phase": "eval", "accuracy": 0.5, "seconds": -1}',
        '{"step": 1, "phase": "eval", "accuracy": 0.5, "seconds": 1e308}',
        '{"step": 1, "phase": "eval", "accuracy": 0.5, "count": NaN}',
        '{"step": 1, "phase": "eval", "accuracy": 1e308}',
        "[" * 100_000,
        '[{"step": 1}]',
        '"eval"',
    ],
    ids=range(11),
)
def test_the_leaderboard_skips_invalid_lines(line, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    (run / "metrics.jsonl").write_text(line)
    boards, reasons = leaderboard_runs.load_leaderboards(tmp_path)
    assert [entry.name for entry in boards[0].unfinished] == ["run"]
    assert reasons == {"metrics.jsonl has a line that cannot be read": ["run"]}
    assert list(leaderboard_table.build_rows(boards[0]))
    assert boards[0].notes is not None
    leaderboard_page.write_page(boards, tmp_path, tmp_path / "page.html")


def test_the_leaderboard_prints_no_control_characters(fukami, trained, tmp_path):
    """Values recorded by a run could otherwise control the terminal, for example move its cursor."""
    run = copy_run(trained, tmp_path / "run\x1b[2J")
    fields = json.loads((run / "recipe.json").read_text())["fields"] | {"data": "a\x1b]0;b\x07" + "c" * 5000}
    change_record(run, recipe="\x1b[31mred", command="fukami\x1b[1A train", device="\x9b1m", fields=fields)
    result = fukami("board", ".")
    assert result.status == 0
    assert not {"\x1b", "\x07", "\x9b"} & set(result.out + result.err)
    assert "fukami�[1A train" in result.out


def test_a_checkpoint_with_a_repeated_tensor_is_rejected(tmp_path):
    """A few kilobytes could otherwise create any number of copies of a megabyte."""
    tensor = {"$tensor": "0", "order": [0]}
    state = json.dumps({"step": 1, "tensors": [tensor] * 2})
    (tmp_path / "last.ckpt").write_bytes(save({"0": torch.zeros(3)}, {"state": state}))
    with pytest.raises(Error, match="corrupted"):
        checkpoint.read_checkpoint(tmp_path, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("versions", 5), ("versions", None), ("device", None), ("precision", []), ("command", 1.5), ("processes", "1"),
     ("compile", None), ("labels", ["\ud800"]), ("command", "\ud800")],
)  # fmt: skip
def test_a_record_of_other_types_is_not_resumed(name, value, fukami, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    change_record(run, **{name: value})
    result = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert result.status == 1, result.err
    assert "recipe.json is corrupted" in result.err


@pytest.mark.parametrize(
    ("name", "value"),
    [("threads", torch.ones(3)), ("versions", torch.ones(3)), ("format", torch.ones(3)), ("manifest", 5),
     ("log", {"seconds": 1.0, "bytes": 0, "last": {"accuracy": "all"}}),
     ("log", {"seconds": 1.0, "bytes": 0, "last": {"accuracy": torch.ones(1)}}),
     ("log", {"seconds": 1.0, "bytes": 0, "last": {}, "step": "x"}),
     ("log", {"seconds": 1.0, "bytes": 0, "last": {}, "step": 10**400})],
)  # fmt: skip
def test_a_checkpoint_of_other_types_is_rejected(name, value, fukami, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    state = decode_checkpoint(run / "last.ckpt", torch.device("cpu"))
    (run / "last.ckpt").write_bytes(b"".join(encode_checkpoint({**state, name: value})))
    result = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert result.status == 1, result.err
    assert "last.ckpt" in result.err
    assert "delete it to restart the run" in result.err


@pytest.mark.report  # reads the log
@pytest.mark.parametrize(
    "text", [b"", b"5\n", b"{}\n", b"\xff\n", b"[" * 100_000, b'{"phase": "eval", "step": "1"}', None]
)
def test_an_invalid_log_is_reported(text, fukami, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    if text is None:
        (run / "metrics.jsonl").unlink()
    else:
        (run / "metrics.jsonl").write_bytes(text)
    result = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert result.status == 1, result.err
    assert "metrics.jsonl is corrupted" in result.err


@pytest.mark.parametrize("line", [b"5\n", b"[]\n", b"{}\n", b"\xff\n", b'["a'])
def test_an_invalid_manifest_is_reported(line, fukami, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    content = b"{}\n" + line
    (run / "manifest.jsonl").write_bytes(content)
    state = decode_checkpoint(run / "last.ckpt", torch.device("cpu"))
    state["manifest"] = hashlib.sha256(content).hexdigest()
    (run / "last.ckpt").write_bytes(b"".join(encode_checkpoint(state)))
    result = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert result.status == 1, result.err
    assert "manifest.jsonl is corrupted" in result.err


def test_a_missing_manifest_is_reported(fukami, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    state = decode_checkpoint(run / "last.ckpt", torch.device("cpu"))
    (run / "last.ckpt").write_bytes(b"".join(encode_checkpoint({**state, "manifest": None})))
    (run / "manifest.jsonl").unlink()
    result = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert result.status == 2, result.err
    assert "manifest.jsonl is missing" in result.err


@pytest.mark.parametrize("file", [".lock", "metrics.jsonl", "manifest.jsonl"])
def test_nothing_is_written_through_a_hard_link(file, fukami, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    (tmp_path / "other").write_text("other content")
    (run / file).unlink(missing_ok=True)
    (run / file).hardlink_to(tmp_path / "other")
    result = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert result.status == 1, result.err
    assert f"{file} is a hard link" in result.err
    assert (tmp_path / "other").read_text() == "other content"


def test_names_with_dollar_signs_are_not_formulas(fukami, trained, tmp_path):
    """Matplotlib would parse a name such as ``$\\frac{$`` as a formula and raise an error."""
    name = "$\\frac{$"
    run = copy_run(trained, tmp_path / "runs" / name)
    (run / "metrics.jsonl").write_text(json.dumps({"phase": "eval", "step": 1, name: 0.5}) + "\n")
    assert fukami("board", "runs").status == 0
    assert report.encode_figure(
        "names of classes", classification_plots.plot_confusion_matrix(torch.eye(2), [name, "other"])
    )


def test_the_leaderboard_accepts_huge_numbers_in_the_record(fukami, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    change_record(run, parameters=10**30, multiply_adds=10**400)
    assert fukami("board", ".").status == 0


def test_the_weights_of_a_stage_are_checked(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    tensors = load_file(run_weights.locate_weights(run))
    name = min(tensors)
    save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, run_weights.locate_weights(run))
    task = load_task(trained)
    with pytest.raises(Error, match=f"{name} has values that are not finite"):
        rcnn.load_stage_weights(task, run)


def test_messages_contain_no_control_characters(trained, tmp_path, forked_python):
    run = copy_run(trained, tmp_path / "run")
    fields = json.loads((run / "recipe.json").read_text())["fields"]
    change_record(run, fields=fields | {"data": "http://127.0.0.1:1/\x1b[31m\x9b"})
    process = subprocess.run(
        [forked_python.executable, "-m", "fukami", "eval", run], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 2
    assert r"http://127.0.0.1:1/\x1b[31m\x9b" in process.stderr
    assert process.stderr.replace("\n", "").isprintable()


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_names_of_files_contain_no_control_characters(command, fukami, trained, tmp_path):
    file = tmp_path / "a\x1b]0;x\x07.png"
    file.write_text("no image")
    result = fukami(command, trained, file)
    assert result.status == 1
    assert r"a\x1b]0;x\x07.png" in result.err
    assert result.err.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("data", "a" * 5000, "no file or folder"), ("data", "{0..999999}.tar", "there is no shard 0.tar"),
     ("seed", 10**30, "at most 64 bits")],
)  # fmt: skip
def test_unavailable_datasets_and_seeds_are_reported(field, value, message, fukami, trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    fields = json.loads((run / "recipe.json").read_text())["fields"]
    change_record(run, fields=fields | {field: value})
    result = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert result.status in (1, 2), result.err
    assert message in result.err
