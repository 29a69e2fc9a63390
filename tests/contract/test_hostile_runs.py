"""Runs that an enemy wrote: no code of theirs runs, and nothing outside of their folder is read, written or fetched."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save, save_file

import fukami as package
from fukami import leaderboard
from fukami.classification import plots as classification_plots
from fukami.classification.deep_convnet import DeepConvNet
from fukami.detection import rcnn
from fukami.engine import checkpoint, report
from fukami.engine.recipe import _matches_type, build_recipe, get_recipe, identify_recipe
from fukami.engine.state_file import encode_state, load_state
from fukami.errors import Error, UsageError

SOURCE = """
from dataclasses import dataclass
from fukami.classification.deep_convnet import DeepConvNet

@dataclass(frozen=True, kw_only=True)
class Mine(DeepConvNet):
    '''A private recipe.'''
"""


def copy(trained, folder):
    """A copy of a run whose files can be changed."""
    shutil.copytree(trained, folder)
    return folder


def change(run, **changes):
    """Other values in ``recipe.json``."""
    path = run / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def private(fukami, trained, tmp_path):
    """A run of the private recipe ``mine.py``, made from a finished one."""
    (tmp_path / "mine.py").write_text(SOURCE)
    run = copy(trained, tmp_path / "run")
    change(run, recipe="mine.py", recipe_sha256=hashlib.sha256(SOURCE.encode()).hexdigest())
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


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    "recipe", ["run/evil.py", "./run/../run/evil.py", "/proc/self/cwd/run/evil.py", "evil.py", "{run}/evil.py", "evil"]
)
def test_no_command_runs_the_recipe_file_that_a_run_names(words, recipe, fukami, trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    evil = "import os, pathlib\nos.environ['HARMED'] = pathlib.Path('harmed').write_text('') or 'yes'\n"
    for place in (run / "evil.py", tmp_path / "evil.py"):
        place.write_text(evil + SOURCE)
    digest = hashlib.sha256((evil + SOURCE).encode()).hexdigest()
    given = {"run": "run", "image": str(next(tmp_path.parent.glob("*/*/*.png"), "none.png"))}
    for more in ({}, {"recipe_sha256": digest}, {"recipe_sha256": None}):
        change(run, recipe=recipe.format(run=run), **more)
        answer = fukami(*(word.format(**given) for word in words))
        assert not (tmp_path / "harmed").exists(), words
        assert "HARMED" not in os.environ
        assert answer.status == (0 if words[0] == "board" else 1 if not more and words[0] != "train" else 2), answer.err
        assert "Traceback" not in answer.err


def test_a_private_recipe_is_given_again(private, fukami, tmp_path):
    image = tmp_path / "black.png"
    from PIL import Image

    Image.new("L", (28, 28)).save(image)
    for words in (["eval", "run"], ["predict", "run", image], ["explain", "run"], ["explain", "run", image]):
        answer = fukami(*words)
        assert answer.status == 2
        assert "give the recipe file, --recipe mine.py" in answer.err
        answer = fukami(*words, "--recipe", "mine.py")
        assert answer.status == 0, answer.err
    assert fukami("export", "run", "--to", "float16", "--out", "half", "--recipe", "mine.py").status == 0
    assert fukami("eval", "half", "--recipe", "mine.py").status == 0
    with pytest.raises(UsageError, match="code is never taken from a run"):
        package.load(private)
    assert package.load(private, recipe=tmp_path / "mine.py").labels == tuple("0123456789")
    assert package.load(private, recipe=package.get_recipe(str(tmp_path / "mine.py"))).labels == tuple("0123456789")


def test_another_recipe_than_the_recorded_one_is_refused(private, fukami, tmp_path):
    """Both digests are named, and nothing of the other file runs."""
    recorded = hashlib.sha256(SOURCE.encode()).hexdigest()
    other = f"open({str(tmp_path / 'harmed')!r}, 'w')\n{SOURCE}"
    (tmp_path / "other.py").write_text(other)
    for words in (["eval", "run", "--recipe", "other.py"], ["export", "run", "--to", "onnx", "--recipe", "other.py"]):
        answer = fukami(*words)
        assert answer.status == 2
        assert recorded in answer.err
        assert hashlib.sha256(other.encode()).hexdigest() in answer.err
    assert not (tmp_path / "harmed").exists()
    with pytest.raises(UsageError, match=recorded):
        package.load(private, recipe=DeepConvNet)
    with pytest.raises(UsageError, match="not a private recipe"):
        package.load("deep-convnet", recipe=tmp_path / "mine.py")


def test_resuming_an_edited_recipe_is_refused(fukami, tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    assert fukami("train", "./mine.py", "--epochs", "1", "--batch-size", "200", "--out", "run").status == 0
    assert fukami("train", "./mine.py", "--out", "run", "--resume").status == 0
    (tmp_path / "mine.py").write_text(SOURCE + "# edited\n")
    answer = fukami("train", "./mine.py", "--out", "run", "--resume")
    assert answer.status == 2
    for text in (SOURCE, SOURCE + "# edited\n"):
        assert hashlib.sha256(text.encode()).hexdigest() in answer.err


def test_a_recipe_of_a_notebook_is_given_as_its_class(trained, tmp_path):
    """It is defined in no file, so there is nothing to hash."""
    namespace = {"__name__": "notebook"}
    module = type(torch)("notebook")
    import sys

    sys.modules["notebook"] = module
    try:
        exec(SOURCE, namespace)
        module.Mine = recipe = namespace["Mine"]
        assert identify_recipe(recipe) == {"recipe": "Mine", "recipe_sha256": None}
        run = copy(trained, tmp_path / "run")
        change(run, **identify_recipe(recipe))
        assert package.load(run, recipe=recipe).labels == tuple("0123456789")
        (tmp_path / "mine.py").write_text(SOURCE)
        with pytest.raises(UsageError, match="give the class"):
            package.load(run, recipe=tmp_path / "mine.py")
    finally:
        del sys.modules["notebook"]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("not finite", lambda value: value.fill_(float("nan"))),
        ("not finite", lambda value: value.index_fill_(0, torch.tensor(0), float("inf"))),
        ("complex64", lambda value: value.to(torch.complex64)),
        ("float64", lambda value: value.double()),
        ("int64", lambda value: value.long()),
        (r"instead of \(10, 50\)", lambda value: value[:, :-1].contiguous()),
    ],
)
def test_weights_that_do_not_fit_are_refused(name, make, trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    tensors = load_file(run / "weights.safetensors")
    last = [key for key, value in tensors.items() if value.shape == (10, 50)]
    save_file(tensors | {last[0]: make(tensors[last[0]])}, run / "weights.safetensors")
    with pytest.raises(Error, match=f"{last[0]}.*{name}"):
        package.load(run)


@pytest.mark.parametrize("file", ["weights.safetensors", "metrics.jsonl", "last.ckpt", "elsewhere"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_what_leads_out_of_a_run_is_refused(file, kind, fukami, trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (run / file).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(run / file)
    else:
        (run / file).symlink_to(outside if kind == "link" else tmp_path / "nothing")
    for words in (["eval", "run"], ["train", "deep-convnet", "--out", "run", "--resume"]):
        answer = fukami(*words)
        assert answer.status == 1
        assert f"run/{file}" in answer.err
    if file != "metrics.jsonl" or kind == "link":  # else there is no run to rank
        assert fukami("board", ".").status == 0
    assert outside.read_text() == "untouched"
    assert not (tmp_path / "nothing").exists()


def test_a_checkpoint_is_written_into_no_link(fukami, trained, tmp_path):
    """Neither into the temporary file of an earlier crash, nor into the folders below."""
    run = copy(trained, tmp_path / "run")
    (tmp_path / "outside").write_text("untouched")
    (run / ".last.ckpt.tmp").symlink_to(tmp_path / "outside")
    checkpoint.write_file(run / "last.ckpt", b"new")
    assert (tmp_path / "outside").read_text() == "untouched"
    assert (run / "last.ckpt").read_bytes() == b"new"
    (run / "memory").mkdir()
    (run / "memory" / "frames.bin").symlink_to(tmp_path / "outside")
    answer = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert answer.status == 1
    assert "frames.bin is a link" in answer.err


@pytest.fixture
def listener():
    """The address of a server, and the connections that came to it."""
    came = []
    server = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            came.append(connection)
            connection.close()

    thread = threading.Thread(target=accept)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", came
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_a_url_that_a_run_names_is_not_contacted(listener, fukami, trained, tmp_path):
    address, came = listener
    run = copy(trained, tmp_path / "run")
    fields = json.loads((run / "recipe.json").read_text())["fields"]
    for spec in (f"{address}/train-{{000..001}}.tar", f"{address}/shards"):
        change(run, fields=fields | {"data": spec})
        for words in (
            ["eval", "run"],
            ["export", "run", "--to", "int8", "--out", "exported"],
            ["eval", "run", "--precision", "int8"],
            ["eval", "run", "--precision", "all"],
            ["train", "deep-convnet", "--out", "run", "--resume"],
        ):
            answer = fukami(*words)
            assert answer.status == 2, answer.err
            assert spec in answer.err
            assert "--data" in answer.err
        assert fukami("board", ".").status == 0
    assert not came
    assert fukami("eval", "run", "--data", "digits").status == 0


def test_local_data_that_a_run_names_are_named(fukami, trained, digit_files, tmp_path, caplog):
    run = copy(trained, tmp_path / "run")
    fields = json.loads((run / "recipe.json").read_text())["fields"]
    change(run, fields=fields | {"data": str(digit_files)})
    assert fukami("eval", "run").status == 0
    assert f"reading the data that the run names: {digit_files}" in caplog.text
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
    (tmp_path / "last.ckpt").write_bytes(encode_state(state))
    found = load_state(tmp_path / "last.ckpt", torch.device("cpu"))
    for one, other in zip(state.pop("tensors"), found.pop("tensors"), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert found == state
    with pytest.raises(TypeError, match="not set"):
        encode_state({"step": {1, 2}})
    (tmp_path / "last.ckpt").write_bytes(encode_state({"step": 1, "image": image}))
    found = load_state(tmp_path / "last.ckpt", torch.device("cpu"))
    assert found["image"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("task", {}),
        ("task", {"model": {}, "optimizer": {}, "scaler": {}}),
        ("loader", None),
        ("loader", {"position": "far"}),
        ("loader", {"turn": 0, "position": -3}),
        ("loader", {"turn": 10**30, "position": 3}),
        ("loader", {"turn": 0, "position": 1.5}),
        ("log", {"seconds": [], "last": 1, "bytes": -1}),
        ("random", {"python": (1, 2), "numpy": [], "torch": torch.zeros(1)}),
        ("step", -1),
        ("step", "1"),
    ],
)
def test_parts_of_a_checkpoint_that_do_not_fit_are_refused(part, value, fukami, trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    state = load_state(run / "last.ckpt", torch.device("cpu"))
    (run / "last.ckpt").write_bytes(encode_state({**state, part: value}))
    answer = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert answer.status == 1, answer.err
    assert "last.ckpt" in answer.err
    assert "remove it to start the run again" in answer.err
    assert "weights_only" not in answer.err


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", True), ("epochs", 1.5), ("epochs", None), ("lr", "1"), ("augment", ["flip", 1]),
        ("augment", "flip"), ("data", 3), ("width", 10**30), ("size", -5), ("size", 0), ("nothing", 1),
    ],
)  # fmt: skip
def test_fields_of_another_type_are_refused(field, value, trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    fields = json.loads((run / "recipe.json").read_text())["fields"]
    change(run, fields=fields | {field: value})
    with pytest.raises(Error, match=r"field|network|between|at least"):
        package.load(run)


@pytest.mark.parametrize(
    ("recipe", "fields"),
    [
        ("resnet20", {"size": 2049}), ("vgg16", {"size": 10**6}), ("binary-convnet", {"size": 10**6}),
        ("rcnn-finetune", {"min_size": 10**6, "max_size": 10**6}), ("rcnn", {"size": 10**6}),
        ("faster-rcnn-vgg16", {"min_size": 800, "max_size": 10**6}), ("fcn8s-vgg16", {"max_size": 10**6}),
        ("show-and-tell", {"beam_size": 10**6}), ("show-and-tell", {"max_words": 10**6}),
    ],
)  # fmt: skip
def test_images_and_searches_without_end_are_refused(recipe, fields):
    """A run of a network for images of any size could ask for a small image to be made so large."""
    with pytest.raises(UsageError, match="should be between"):
        build_recipe(get_recipe(recipe), fields)


@pytest.mark.parametrize(
    ("recipe", "field", "value"),
    [("deep-convnet", "cycles", 10**9), ("binary-convnet", "hidden", [4] * 100_000)],
)
def test_networks_without_end_are_refused(recipe, field, value, trained, tmp_path):
    """A few bytes of recipe.json could otherwise ask for layers until memory ends."""
    run = copy(trained, tmp_path / "run")
    change(run, recipe=recipe, fields={field: value})
    with pytest.raises(Error, match=r"more than 50,000 layers|between 1 and 100"):
        package.load(run)


def test_sparse_weights_take_no_memory(trained, tmp_path):
    """A file of eight gigabytes of nothing costs its sender nothing; its shapes are compared before it is read."""
    import resource

    run = copy(trained, tmp_path / "run")
    header = {"model.0.weight": {"dtype": "F32", "shape": [2**31], "data_offsets": [0, 2**33]}}
    text = json.dumps(header).encode()
    with (run / "weights.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2**33)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Error, match=r"model\.0\.weight is \(2147483648,\) instead of"):
        package.load(run)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


def test_a_checkpoint_beyond_the_end_is_refused(fukami, trained, tmp_path):
    """Its own log would otherwise be the result of a training that never was."""
    run = copy(trained, tmp_path / "run")
    state = load_state(run / "last.ckpt", torch.device("cpu"))
    (run / "last.ckpt").write_bytes(encode_state({**state, "step": state["step"] + 1}))
    answer = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert answer.status == 1
    assert "and the training has" in answer.err


def test_a_prediction_controls_no_terminal(fukami, trained, digit_files, tmp_path):
    run = copy(trained, tmp_path / "run")
    change(run, labels=[f"\x9b1m{number}" for number in range(10)])
    answer = fukami("predict", "run", next(digit_files.rglob("*.png")))
    assert answer.status == 0
    assert "\x9b" not in answer.out
    assert answer.json[0]["label"].startswith("\x9b1m")


def test_types_of_fields():
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
        "[" * 100_000,
        '[{"step": 1}]',
        '"eval"',
    ],
    ids=range(8),
)
def test_the_board_passes_over_lines_that_no_training_writes(line, trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    (run / "metrics.jsonl").write_text(line)
    boards, reasons = leaderboard.load_leaderboards(tmp_path)
    assert [found.name for found in boards[0].unfinished] == ["run"]
    assert list(reasons) == ["metrics.jsonl has a line that cannot be read"]
    assert leaderboard.build_rows(boards[0])


def test_the_board_shows_no_control_characters(fukami, trained, tmp_path):
    """What a run records could otherwise move the cursor, or more, in the terminal that shows it."""
    run = copy(trained, tmp_path / "run\x1b[2J")
    fields = json.loads((run / "recipe.json").read_text())["fields"] | {"data": "a\x1b]0;b\x07" + "c" * 5000}
    change(run, recipe="\x1b[31mred", command="fukami\x1b[1A train", device="\x9b1m", fields=fields)
    answer = fukami("board", ".")
    assert answer.status == 0
    assert not {"\x1b", "\x07", "\x9b"} & set(answer.out + answer.err)
    assert "fukami�[1A train" in answer.out


def test_a_checkpoint_that_names_a_tensor_twice_is_refused(tmp_path):
    """A few kilobytes could otherwise ask for any number of copies of a megabyte."""
    tensor = {"$tensor": "0", "order": [0]}
    state = json.dumps({"step": 1, "tensors": [tensor] * 2})
    (tmp_path / "last.ckpt").write_bytes(save({"0": torch.zeros(3)}, {"state": state}))
    with pytest.raises(Error, match="damaged"):
        checkpoint.read_state(tmp_path, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("versions", 5), ("versions", None), ("device", None), ("precision", []), ("command", 1.5), ("processes", "1"),
     ("compile", None), ("labels", ["\ud800"]), ("command", "\ud800")],
)  # fmt: skip
def test_a_record_of_other_types_is_not_resumed(name, value, fukami, trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    change(run, **{name: value})
    answer = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert answer.status == 1, answer.err
    assert "recipe.json is damaged" in answer.err


@pytest.mark.parametrize(
    ("name", "value"),
    [("threads", torch.ones(3)), ("versions", torch.ones(3)), ("format", torch.ones(3)), ("manifest", 5),
     ("log", {"seconds": 1.0, "bytes": 0, "last": {"accuracy": "all"}}),
     ("log", {"seconds": 1.0, "bytes": 0, "last": {"accuracy": torch.ones(1)}})],
)  # fmt: skip
def test_a_checkpoint_of_other_types_is_refused(name, value, fukami, trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    state = load_state(run / "last.ckpt", torch.device("cpu"))
    (run / "last.ckpt").write_bytes(encode_state({**state, name: value}))
    answer = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert answer.status == 1, answer.err
    assert "last.ckpt" in answer.err
    assert "remove it to start the run again" in answer.err


@pytest.mark.parametrize(
    "text", [b"", b"5\n", b"{}\n", b"\xff\n", b"[" * 100_000, b'{"phase": "eval", "step": "1"}', None]
)
def test_a_log_that_no_training_wrote_is_named(text, fukami, trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    if text is None:
        (run / "metrics.jsonl").unlink()
    else:
        (run / "metrics.jsonl").write_bytes(text)
    answer = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert answer.status == 1, answer.err
    assert "metrics.jsonl is damaged" in answer.err


@pytest.mark.parametrize("line", [b"5\n", b"[]\n", b"{}\n", b"\xff\n", b'["a'])
def test_a_manifest_that_no_training_wrote_is_named(line, fukami, trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    content = b"{}\n" + line
    (run / "manifest.jsonl").write_bytes(content)
    state = load_state(run / "last.ckpt", torch.device("cpu"))
    state["manifest"] = hashlib.sha256(content).hexdigest()
    (run / "last.ckpt").write_bytes(encode_state(state))
    answer = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert answer.status == 1, answer.err
    assert "manifest.jsonl is damaged" in answer.err


def test_a_checkpoint_without_a_manifest_and_a_run_without_one(fukami, trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    state = load_state(run / "last.ckpt", torch.device("cpu"))
    (run / "last.ckpt").write_bytes(encode_state({**state, "manifest": None}))
    (run / "manifest.jsonl").unlink()
    answer = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert answer.status == 2, answer.err
    assert "manifest.jsonl is missing" in answer.err


@pytest.mark.parametrize("file", [".lock", "metrics.jsonl", "manifest.jsonl"])
def test_nothing_is_written_through_a_hard_link(file, fukami, trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    (tmp_path / "other").write_text("of somebody else")
    (run / file).unlink(missing_ok=True)
    (run / file).hardlink_to(tmp_path / "other")
    answer = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert answer.status == 1, answer.err
    assert f"{file} is a hard link" in answer.err
    assert (tmp_path / "other").read_text() == "of somebody else"


def test_names_with_dollars_are_no_formulas(fukami, trained, tmp_path):
    """A name such as ``$\\frac{$`` is a formula that cannot be read; it ended ``board`` and reports."""
    name = "$\\frac{$"
    run = copy(trained, tmp_path / "runs" / name)
    (run / "metrics.jsonl").write_text(json.dumps({"phase": "eval", "step": 1, name: 0.5}) + "\n")
    assert fukami("board", "runs").status == 0
    assert report.render_figure(
        "names of classes", classification_plots.plot_confusion_matrix(torch.eye(2), [name, "other"])
    )


def test_the_board_shows_no_numbers_that_no_training_writes(fukami, trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    change(run, parameters=10**30, multiply_adds=10**400)
    assert fukami("board", ".").status == 0


def test_the_weights_of_a_stage_are_checked(trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    tensors = load_file(run / "weights.safetensors")
    name = min(tensors)
    save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, run / "weights.safetensors")
    task = package.load(trained)
    with pytest.raises(Error, match=f"{name} has values that are not finite"):
        rcnn.load_stage_weights(task, run)


def test_messages_control_no_terminal(trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    fields = json.loads((run / "recipe.json").read_text())["fields"]
    change(run, fields=fields | {"data": "http://127.0.0.1:1/\x1b[31m\x9b"})
    done = subprocess.run([sys.executable, "-m", "fukami", "eval", run], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert r"http://127.0.0.1:1/\x1b[31m\x9b" in done.stderr
    assert done.stderr.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("data", "a" * 5000, "unknown data"), ("data", "{0..999999}.tar", "there is no shard 0.tar"),
     ("seed", 10**30, "at most 64 bits")],
)  # fmt: skip
def test_fields_that_ask_for_what_there_is_not(field, value, words, fukami, trained, tmp_path):
    run = copy(trained, tmp_path / "run")
    fields = json.loads((run / "recipe.json").read_text())["fields"]
    change(run, fields=fields | {field: value})
    answer = fukami("train", "deep-convnet", "--out", "run", "--resume")
    assert answer.status in (1, 2), answer.err
    assert words in answer.err
