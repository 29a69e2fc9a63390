"""Tests of the progress on stderr, with a clock that the tests set."""

import itertools
import json
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import fukami as fukami_package
from fukami import progress
from fukami.classification.task import ClassificationTask
from fukami.data import findings
from fukami.data.streaming import StreamingLoader
from fukami.engine.log import describe_networks
from fukami.engine.task import Task
from fukami.image.transform import SquareTransform
from fukami.progress import Monitor, ProgressBar, Waiting, format_duration, track

SMALL = ("--widths", "4", "4", "4", "4", "4", "4", "--hidden", "8", "--precision", "float32", "--device", "cpu")
IMAGES_PER_CLASS = {"train": 8, "val": 4, "test": 3}


class FakeClock:
    """Clock whose time passes only in :meth:`advance`, which calls every second what the thread calls."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        for _ in range(seconds):
            self.now += 1
            progress.show_due_progress()

    def delay(self, function, seconds):
        """Return the function, which then takes this number of seconds."""

        def delayed(*arguments, **options):
            self.advance(seconds)
            return function(*arguments, **options)

        return delayed


@pytest.fixture
def clock(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(ProgressBar, "clock", staticmethod(clock))
    monkeypatch.setattr(Monitor, "run", lambda monitor, stop: None)
    monkeypatch.setattr(progress, "_monitor", Monitor())
    return clock


@pytest.fixture
def lines(clock, monkeypatch):
    """Plain lines so far, each with its time."""
    lines = []
    write = ProgressBar.write
    monkeypatch.setattr(
        ProgressBar, "write", lambda text, **options: (lines.append((clock.now, text)), write(text, **options))
    )
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of random images of three classes in the splits of ``IMAGES_PER_CLASS``."""
    root, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for split, count in IMAGES_PER_CLASS.items():
        for label in ("a", "b", "c"):
            (root / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{index}.png")
    return root


def delay(monkeypatch, clock, owner, name, seconds):
    monkeypatch.setattr(owner, name, clock.delay(getattr(owner, name), seconds))


def check_intervals(lines, end):
    """Check that no more than 30 seconds pass without a line."""
    times = [*(time for time, _ in lines), end]
    assert max(after - before for before, after in itertools.pairwise(times)) <= progress.LINE_INTERVAL


def read_metrics(run):
    """Read the log without the values that depend on time."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("images_per_second", "seconds", "data_wait_fraction")
    return [{name: value for name, value in record.items() if name not in timed} for record in records]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_shows_a_bar(is_terminal, clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with ProgressBar("checking", 8, "images") as bar:
        clock.advance(1)
        bar.update(2)
        assert capsys.readouterr().err == ""  # too short to show anything
        bar.update(2)
        clock.advance(4)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("checking  50% |██████████          | 4/8 00:00" in err) == is_terminal
    assert ("checking: 4 of 8 images  0:02 left\n" in err) != is_terminal


def test_plain_lines_appear_at_least_every_30_seconds(clock, lines, capsys):
    for _ in track(range(1500), "reading images"):
        clock.advance(7)
    assert lines[0] == (1002.0, "reading images: 0 of 1,500")
    assert lines[1] == (1032.0, "reading images: 4 of 1,500  3:19:28 left")
    check_intervals(lines, clock.now)
    assert len(lines) == 1500 * 7 // 30
    assert capsys.readouterr().out == ""


def test_lines_appear_while_a_single_item_takes_long_and_if_the_total_is_unknown(clock, lines):
    for _ in track(iter(range(2)), "indexing", unit="shards"):
        clock.advance(65)
    assert [text for _, text in lines] == ["indexing: 0 shards"] * 3 + ["indexing: 1 shards"] * 2


def test_short_operations_print_nothing(clock, lines):
    for _ in range(20):
        for _ in track(range(1), "evaluation"):
            clock.advance(1)
    assert lines == []


def test_only_the_innermost_operation_and_the_first_process_print(clock, lines, monkeypatch):
    with ProgressBar("outer", 2), ProgressBar("inner", 2, "images"):
        clock.advance(40)
    assert [text for _, text in lines] == ["inner: 0 of 2 images"] * 2
    monkeypatch.setenv("RANK", "1")
    with ProgressBar("other process", 2):
        clock.advance(40)
    assert len(lines) == 2


def test_a_message_of_waiting_appears_after_two_seconds(clock, lines):
    progress.print_line("start")
    with Waiting("starting 2 worker processes") as waiting:
        clock.advance(3)
        waiting.describe("waiting for the first batch")
        clock.advance(32)
    assert lines[1:] == [
        (1002.0, "starting 2 worker processes"),
        (1005.0, "waiting for the first batch"),
        (1035.0, "waiting for the first batch"),
    ]


def test_control_characters_are_escaped(capsys):
    progress.print_line("a\x1b[31m\x9b")
    assert capsys.readouterr().err == "a\\x1b[31m\\x9b\n"


def test_a_thread_shows_the_progress_until_the_operation_ends(monkeypatch):
    ticks = []
    monkeypatch.setattr(progress, "_monitor", Monitor())  # an exception of another test may keep its bar alive
    monkeypatch.setattr(Monitor, "run", lambda monitor, stop: ticks.append(stop.wait(60)))
    with ProgressBar("checking", 8, "images"):
        *_, thread = [thread for thread in threading.enumerate() if thread.name == "progress"]
    thread.join(60)
    assert ticks == [True]


def test_the_thread_shows_the_progress_every_second(monkeypatch):
    class Stop:
        seconds = 0.0

        def wait(self, timeout):
            self.seconds += timeout
            return self.seconds > 5

    shown = []
    monkeypatch.setattr(progress, "show_due_progress", lambda: shown.append(True))
    Monitor().run(Stop())
    assert len(shown) == 5


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (400, "6:40"), (4000, "1:06:40")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_training_describes_the_run_and_prints_at_least_every_30_seconds(fukami, folder, clock, lines, monkeypatch):
    """Also while images are read, while a step takes long, and in the evaluations."""
    delay(monkeypatch, clock, SquareTransform, "read_and_transform", 3)
    delay(monkeypatch, clock, Task, "step", 70)
    delay(monkeypatch, clock, ClassificationTask, "predict_member_log_probabilities", 45)
    options = ("--data", folder, "--epochs", "2", "--batch-size", "4", "--accumulate", "2", *SMALL)
    result = fukami("train", "deep-convnet", *options, "--out", "run")
    assert result.status == 0, result.err
    assert len(result.json) == 1  # nothing else on stdout
    texts = [text for _, text in lines]
    assert texts[0].startswith("deep-convnet on cpu, ")
    assert texts[0].endswith(", float32, in run")
    start = texts.index(f"data: {folder} (class folders), train 24 · val 12 · test 9, 3 classes")
    assert any(text.startswith("reading images: ") for text in texts[1:start])
    size = sum(parameter.numel() for parameter in fukami_package.load("run").task.model.parameters())
    assert texts[start + 1] == f"network: {size:,} parameters"
    assert texts[start + 2] == "training: 2 epochs of 6 steps, batch size 4, adamw, learning rate 0.002"
    assert "epoch 0/2  step 0/12" in texts
    assert any(text.startswith("epoch 1/2  step 2/12  loss ") and text.endswith(" left") for text in texts)
    assert any(text.startswith("evaluation: 0 of 1 batches") for text in texts)
    check_intervals(lines, clock.now)


def test_the_log_does_not_depend_on_time(fukami, folder, clock, monkeypatch, tmp_path):
    options = ("--data", folder, "--epochs", "2", "--batch-size", "4", *SMALL)
    assert fukami("train", "deep-convnet", *options, "--out", "fast").status == 0
    delay(monkeypatch, clock, Task, "step", 70)
    assert fukami("train", "deep-convnet", *options, "--out", "slow").status == 0
    assert read_metrics(tmp_path / "slow") == read_metrics(tmp_path / "fast")
    assert len(read_metrics(tmp_path / "slow")) > 4


def test_training_without_validation_data_prints_each_evaluation_interval(fukami, folder):
    options = ("--data", folder / "train", "--val-fraction", "0", "--epochs", "3", "--batch-size", "4", *SMALL)
    result = fukami("train", "deep-convnet", *options, "--out", "run")
    assert result.status == 0, result.err
    assert f"data: {folder / 'train'} (class folders), train 24, 3 classes\n" in result.err
    printed = [line for line in result.err.splitlines() if line.startswith("epoch ")]
    assert [line.split("  loss ")[0] for line in printed] == [f"epoch {i}/3  step {6 * i}/18" for i in (1, 2, 3)]
    assert all(line.endswith(" left") for line in printed)


def test_a_resumed_run_prints_from_which_step_it_continues(fukami, folder):
    options = ("--data", folder, "--epochs", "1", "--batch-size", "4", *SMALL, "--out", "run")
    assert "resumed" not in fukami("train", "deep-convnet", *options).err
    assert "resumed after epoch 1/1  step 6/6\n" in fukami("train", "deep-convnet", *options, "--resume").err


def test_a_streamed_start_prints_what_it_waits_for(fukami, folder, clock, lines, monkeypatch):
    delay(monkeypatch, clock, StreamingLoader, "_wait_for_batch", 3)
    options = ("--data", folder, "--epochs", "1", "--batch-size", "4", "--memory-limit", "0", *SMALL)
    result = fukami("train", "deep-convnet", *options, "--out", "files")
    assert result.status == 0, result.err
    assert "waiting for the first batch: " in result.err
    assert "decode images\n" in result.err
    assert fukami("shard", folder, "shards").status == 0
    options = ("--data", "shards", *options[2:])
    result = fukami("train", "deep-convnet", *options, "--out", "shards-run")
    assert result.status == 0, result.err
    assert re.search("waiting for the first batch: reading [24] of [0-9]+ shards from shards\n", result.err)


def test_a_start_of_worker_processes_is_shown(clock, lines, folder, monkeypatch):
    from fukami.classification.deep_convnet import DeepConvNet

    recipe = DeepConvNet(data=str(folder), memory_limit=0.0, batch_size=4)
    loader = recipe.load_data().train
    delay(monkeypatch, clock, type(loader), "iterate_requests", 3)
    next(iter(loader))
    assert lines[0][1].startswith("starting ")
    assert "worker process" in lines[0][1]


def test_prediction_evaluation_and_proposals_print_the_count(fukami, folder, clock, lines, monkeypatch):
    options = ("--data", folder, "--epochs", "1", "--batch-size", "4", *SMALL)
    assert fukami("train", "deep-convnet", *options, "--out", "run").status == 0
    lines.clear()
    delay(monkeypatch, clock, ClassificationTask, "predict_batch", 40)
    result = fukami("predict", "run", folder / "test", "--format", "jsonl")
    assert len(result.json) == 9
    assert any(text.startswith("predict: 0 of 9 images") for _, text in lines)
    lines.clear()
    delay(monkeypatch, clock, ClassificationTask, "predict_member_log_probabilities", 40)
    result = fukami("eval", "run")
    assert result.json[0]["count"] == 9
    assert any(text.startswith("evaluation: 0 of 1 batches") for _, text in lines)
    lines.clear()
    from fukami.selective_search import search

    delay(monkeypatch, clock, search, "propose_regions", 35)
    result = fukami("propose", folder / "test" / "a")
    assert len(result.json) == 3
    assert [text for _, text in lines][1].startswith("propose: 1 of 3 images  1:")


def test_validation_of_a_dataset_prints_the_count(fukami, folder, clock, lines, monkeypatch):
    delay(monkeypatch, clock, findings, "hash_pixels", 1)  # in threads
    monkeypatch.setattr(findings, "start_decoding_threads", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(findings, "CHUNK_SIZE", 5)
    fukami("doctor", folder)
    assert any(re.match("checking: (5|10|15|20|25|30) of 45 images  0:", text) for _, text in lines)


@pytest.mark.slow
def test_calibration_and_export_print_what_they_do(fukami, folder, clock, lines, monkeypatch):
    pytest.importorskip("onnx")
    from fukami.quantization import int8

    options = ("--data", folder, "--epochs", "1", "--batch-size", "4", *SMALL)
    assert fukami("train", "deep-convnet", *options, "--out", "run").status == 0
    lines.clear()
    delay(monkeypatch, clock, int8.FakeQuantActivation, "forward", 20)
    delay(monkeypatch, clock, int8, "export_int8", 40)
    result = fukami("export", "run", "--to", "int8")
    assert len(result.json) == 1
    texts = [text for _, text in lines]
    assert any(re.match("calibration: [1-5] of 6 batches  [0-9]+:[0-9]+ left", text) for text in texts)
    assert texts[-1] == "exporting run to int8"
    check_intervals(lines, clock.now)


def test_each_stage_of_a_recipe_is_named_and_resumed_with_the_command_of_the_recipe(tmp_path, monkeypatch, capsys):
    from fukami.detection.rcnn import RCNN
    from fukami.engine import train
    from fukami.engine.runtime import Runtime

    trained = []
    monkeypatch.setattr(
        train, "run_training", lambda recipe, folder, options: trained.append((folder.name, options.resume_command))
    )
    options = train.RunOptions("cpu", "float32", compile=False, resume=False)
    train.train_stages(RCNN(data="scenes"), tmp_path, Runtime.start("cpu", "float32"), options)
    command = f"fukami train rcnn --out {tmp_path} --resume"
    assert trained == [("finetune", command), ("svm", command)]
    assert capsys.readouterr().err == "stage 1 of 3: finetune\nstage 2 of 3: svm\nstage 3 of 3\n"


def test_data_without_samples_are_described_by_what_they_have(fukami, lines):
    options = ("--steps", "1200", "--learning-starts", "1000", "--eval-episodes", "3", "--device", "cpu")
    result = fukami("train", "dqn", *options, "--out", "run")
    assert result.status == 0, result.err
    texts = [text for _, text in lines]
    assert texts[1] == "data: catch, val 3 episodes, 3 actions"
    assert texts[3].startswith("training: 50 steps, batch size 32, adam, learning rate ")


def test_frozen_parameters_are_counted():
    task = Task(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1, bias=False)))
    assert describe_networks(task) == "10 parameters"
    task.model[0].requires_grad_(False)
    assert describe_networks(task) == "10 parameters, 2 trained"


def test_training_in_a_terminal_shows_the_loss_and_the_remaining_time(fukami, monkeypatch):
    """Evaluations are printed above the bar, without the remaining time that the bar shows."""
    arguments = ("--data", "digits", "--epochs", "1", *SMALL)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    result = fukami("train", "deep-convnet", *arguments, "--out", "shown")
    assert result.status == 0, result.err
    assert "epoch 1/1  step 14/14 100% |████████████| 00:00, loss" in result.err
    (line,) = [line for line in result.err.splitlines() if "|  accuracy" in line]
    assert "left" not in line
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    result = fukami("train", "deep-convnet", *arguments, "--out", "plain")
    assert "100% |" not in result.err
    assert "0:00 left  |  accuracy" in result.err
