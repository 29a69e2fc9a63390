"""Tests of the leaderboard: ranks, published results, corrupted and unfinished runs, and the page."""

import json
import re

import pytest

from fukami.engine import run_folder
from fukami.leaderboard import page as leaderboard_page
from fukami.leaderboard import runs as leaderboard_runs
from fukami.leaderboard import table as leaderboard_table

COSTS = {"parameters": 123_552, "multiply_adds": 8_772_340}


def create_run(
    folder, *values, data="digits", metric="accuracy", recipe="deep-convnet", epochs=None, eval_every=1, **changes
):
    """Create a run with an evaluation for each value, a hundred steps and two seconds apart."""
    folder.mkdir(parents=True)
    epochs = epochs or eval_every * len(values) or 3
    fields = {"seed": 0, "data": data, "epochs": epochs, "eval_every": eval_every}
    record = {"recipe": recipe, "fields": fields, "labels": list("0123456789"), "device": "cpu", "precision": "float32"}
    command = f"fukami train {recipe} --data {data} --out '<{folder.name}>'"
    (folder / "recipe.json").write_text(json.dumps(record | {"processes": 1, "command": command} | COSTS | changes))
    lines = [{"step": 1, "phase": "train", "loss": 2.3, "accuracy": 0.1, "lr": 0.1, "images_per_second": 9.0}]
    for index, value in enumerate(values, 1):
        line = {"step": 100 * index, "phase": "eval", "count": 359, "errors": 1, metric: value, "loss": 0.5}
        lines.append(line | {"seconds": 2.0 * index})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def get_cells(result, name):
    """Return the cells of a run in the printed table."""
    (row,) = [line for line in result.out.splitlines() if re.match(rf"\s*(\d+|–)\s+{re.escape(name)}\s", line)]
    return row.split()


def test_runs_are_ranked_by_their_last_evaluation(fukami, tmp_path):
    create_run(tmp_path / "runs" / "good", 0.5, 0.96)
    create_run(tmp_path / "runs" / "deep" / "fell", 0.99, 0.9)
    create_run(tmp_path / "runs" / "best", 0.6, 0.975)
    create_run(tmp_path / "runs" / "equal", 0.4, 0.96)
    result = fukami("board", "runs")
    assert result.status == 0, result.err
    assert result.out.splitlines()[0] == "digits: accuracy"
    ranks = [get_cells(result, name)[0] for name in ("best", "good", "equal", "deep/fell")]
    assert ranks == ["1", "2", "2", "4"]
    assert "90.00 % val" in " ".join(get_cells(result, "deep/fell"))
    row = " ".join(get_cells(result, "best"))
    assert row == "1 best deep-convnet 97.50 % val 124 k 8.77 M 4.0 2 0 cpu float32"


def test_the_result_is_that_of_the_saved_weights(fukami, tmp_path):
    """On the test data if there are any, at the best evaluation if its weights were saved, else at the last one."""
    for name in ("kept", "tested"):
        folder = create_run(tmp_path / "runs" / name, 0.8, 0.7)
        (folder / "best.safetensors").touch()
    line = {"step": 200, "phase": "test", "split": "test", "count": 400, "accuracy": 0.75, "seconds": 9.0}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    create_run(tmp_path / "runs" / "last", 0.8, 0.6)
    result = fukami("board", "runs")
    rows = [get_cells(result, name) for name in ("kept", "tested", "last")]
    assert [row[:1] + row[3:6] for row in rows] == [
        ["1", "80.00", "%", "val"], ["2", "75.00", "%", "test"], ["3", "60.00", "%", "val"]]  # fmt: skip
    assert rows[1][10:12] == ["9.0", "2"]
    assert "evaluated on different data (test with 400 items, val with 359 items)" in result.out


def test_a_run_with_test_data_only(fukami, tmp_path):
    folder = create_run(tmp_path / "runs" / "one", epochs=4)
    line = {"step": 200, "phase": "test", "split": "test", "count": 400, "accuracy": 0.75, "seconds": 9.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    result = fukami("board", "runs")
    assert " ".join(get_cells(result, "one")) == "1 one deep-convnet 75.00 % test 124 k 8.77 M 9.0 4 0 cpu float32"
    (board,), _ = leaderboard_runs.load_leaderboards(tmp_path)
    assert board.runs[0].steps_per_epoch == 50


def test_long_commands_are_printed_in_full(fukami, tmp_path):
    command = "fukami train deep-convnet " + " ".join(f"--field-{number} {number}" for number in range(40))
    create_run(tmp_path / "runs" / "one", 0.5, command=command)
    result = fukami("board", "runs")
    assert f" 1  {command}\n" in result.out


def test_epochs_with_an_evaluation_interval(fukami, tmp_path):
    """Epochs in the table and in the curves of runs that are not evaluated after each epoch."""
    create_run(tmp_path / "interrupted", 0.4, 0.5, eval_every=10, epochs=60)
    create_run(tmp_path / "rare", 0.6, eval_every=100, epochs=20)
    assert " 20 of 60 " in fukami("board", ".").out
    (board,), _ = leaderboard_runs.load_leaderboards(tmp_path)
    (_, figure), *_ = leaderboard_page.plot_curves(board)
    (epochs,) = figure.axes
    assert [run.name for run in board.runs] == ["rare", "interrupted"]
    assert [list(line.get_xdata()) for line in epochs.lines] == [[20], [10, 20]]


def test_metrics_for_which_lower_is_better(fukami, tmp_path):
    create_run(tmp_path / "a", 30.0, metric="frechet_vgg16")
    create_run(tmp_path / "b", 20.0, 25.0, metric="frechet_vgg16")
    result = fukami("board", ".")
    assert result.out.splitlines()[0] == "digits: frechet_vgg16"
    assert get_cells(result, "b")[:5] == ["1", "b", "deep-convnet", "25.0000", "val"]
    assert "lower frechet_vgg16 is better" in result.out


def test_runs_are_ranked_by_map_and_nested_values_are_ignored(fukami, tmp_path):
    for name, value in (("a", 0.5), ("b", 0.75)):
        folder = create_run(tmp_path / name, value)
        line = {"step": 9, "phase": "eval", "map": value, "coco_ap": 1 - value, "count": 3, "objects": 5}
        line |= {"classes": {"cat": {"ap": value, "objects": 5}}, "seconds": 1.0}
        (folder / "metrics.jsonl").write_text(json.dumps(line))
    result = fukami("board", ".")
    assert result.out.splitlines()[0] == "digits: map"
    assert get_cells(result, "b")[:5] == ["1", "b", "deep-convnet", "75.00", "%"]
    assert get_cells(result, "a")[0] == "2"
    assert result.err == "page: board.html\n"


def test_loss_is_the_metric_only_without_another_one(fukami, tmp_path):
    folder = create_run(tmp_path / "a", 0.5)
    folder.joinpath("metrics.jsonl").write_text(
        '{"step": 1, "phase": "eval", "count": 3, "loss": 0.25, "seconds": 1}\n'
    )
    assert fukami("board", ".").out.splitlines()[0] == "digits: loss"


def test_values_that_are_not_finite_are_last(fukami, tmp_path):
    create_run(tmp_path / "a", 0.5)
    create_run(tmp_path / "b", float("nan"))
    result = fukami("board", ".")
    assert result.status == 0, result.err
    assert get_cells(result, "b")[0] == "2"


def test_each_dataset_and_metric_has_a_leaderboard(fukami, tmp_path, monkeypatch):
    """Two names of the same folder are one dataset."""
    (tmp_path / "photos").mkdir()
    create_run(tmp_path / "runs" / "a", 0.5, data="photos")
    create_run(tmp_path / "runs" / "b", 0.6, data=str(tmp_path / "photos"))
    create_run(tmp_path / "runs" / "c", 0.7)
    create_run(tmp_path / "runs" / "d", 0.7, metric="miou")
    boards, _ = leaderboard_runs.load_leaderboards(tmp_path / "runs")
    runs = {(board.metric, tuple(run.name for run in board.runs)) for board in boards}
    assert runs == {("accuracy", ("b", "a")), ("accuracy", ("c",)), ("miou", ("d",))}


def test_games_and_environments_have_their_own_leaderboards(tmp_path):
    for name, fields in (("a", ["connect4"]), ("b", ["go5", "go7"]), ("c", ["connect4"])):
        create_run(tmp_path / name, 0.5, recipe="alphago-zero", metric="optimal", fields={"game": fields})
    create_run(tmp_path / "d", 19, recipe="dqn", metric="return", fields={"env": "pong"})
    create_run(tmp_path / "e", 19, recipe="neural-style", metric="score", fields={})
    create_run(tmp_path / "f", 0.5, fields={"data": "", "images": "photos", "annotations": "labels.csv"})
    boards, _ = leaderboard_runs.load_leaderboards(tmp_path)
    runs = {board.data: "".join(run.name for run in board.runs) for board in boards}
    assert runs == {"connect4": "ac", "go5, go7": "b", "pong": "d", "no dataset (neural-style)": "e", "labels.csv": "f"}
    notes = {board.data: board.notes for board in boards}
    assert any("the paper of dqn reports 18.9 Pong" in note for note in notes["pong"])


def test_published_results_are_listed(fukami, tmp_path):
    """Results of the literature and of the recipe's paper have no rank and appear only with their dataset."""
    create_run(tmp_path / "mnist" / "a", 0.9960, data="mnist")
    result = fukami("board", "mnist")
    values = re.findall(r"(\d\d\.\d\d) %", result.out.split(" 1  fukami")[0])
    assert values == ["99.91", "99.79", "99.60", "99.35"]
    for mark in ("pub. 2020  two-layer ensemble of CNNs", "pub. 2013  DropConnect ", "pub. 2016  deep-convnet "):
        assert f"\n{mark}" in result.out
    note = "DropConnect: Wan et al. 2013, as listed by Benenson; extra training data: none"
    assert f"\n    pub. {note}\n" in result.out
    assert "pub. deep-convnet: study note on Saitoh, Deep Learning from Scratch 2016\n" in result.out
    assert f'<p class="note">Pub. {note}.</p>' in (tmp_path / "mnist" / "board.html").read_text()

    create_run(tmp_path / "digits" / "a", 0.95)
    result = fukami("board", "digits")
    assert "DropConnect" not in result.out
    assert "pub." not in result.out
    assert "the paper of" not in result.out


@pytest.mark.parametrize(
    ("name", "results"),
    [
        ("data/STL-10", ["CLIP ViT-L/14, linear probe*", "EnAET", "stacked what-where auto-encoders"]),
        (
            "svhn",
            ["Wide-ResNet-28-10, AutoAugment, SAM*", "tree and max-average pooling", "Wide-ResNet-28-10, RandAugment"],
        ),
        ("cifar100", ["EfficientNet-L2, SAM*", "PyramidNet, AutoAugment, SAM", "CNN with ELU"]),
        *(
            (
                name,
                ["EfficientNet-L2, SAM*", "four PyramidNets, co-training", "fractional max pooling, 100 tests"],
            )
            for name in ("cifar10", "data/cifar10.zip", "CIFAR-10", "data/CIFAR-10/")
        ),
        ("photos", []),
        ("STL-10-mine", []),
    ],
)
def test_the_best_published_results_up_to_2016_and_later(fukami, tmp_path, name, results):
    """A star marks extra training data here; the board has a column for it and names the data below."""
    create_run(tmp_path / "runs" / "mine", 0.5, data=name)
    result = fukami("board", "runs")
    assert result.status == 0, result.err
    rows = [line for line in result.out.splitlines() if re.match(r"pub\. \d{4}  ", line)]
    notes = [line for line in result.out.splitlines() if line.startswith("    pub. ")]
    assert len(rows) == len(notes) == len(results)
    for row, note, text in zip(rows, notes, results, strict=True):
        method = text.rstrip("*")
        assert row[11:].startswith(f"{method}  ")
        assert ("  extra data  " in row) == text.endswith("*")
        assert note.startswith(f"    pub. {method}: ")
    assert get_cells(result, "mine")[0] == "1"


def test_the_result_of_the_own_paper_has_the_parameters_of_the_file(tmp_path):
    create_run(tmp_path / "a", 0.9, data="CIFAR-10", recipe="resnet20")
    create_run(tmp_path / "b", 0.9, data="CIFAR-10", recipe="resnet32")
    ((board,), _) = leaderboard_runs.load_leaderboards(tmp_path)
    own = [(result.method, result.accuracy, result.year, result.parameters) for result in board.published[-2:]]
    assert own == [("resnet32", 0.9249, 2016, None), ("ResNet-20", 0.9125, 2016, 270_000)]
    assert len(board.published) == 5


@pytest.mark.parametrize(
    ("recipe", "data", "metric", "is_noted"),
    [
        ("resnet18", "imagenet", "accuracy", True),
        ("resnet18", "photos", "accuracy", False),
        ("faster-rcnn-vgg16", "voc2007", "map", True),
        ("faster-rcnn-vgg16", "voc2012", "map", False),
        ("faster-rcnn-vgg16", "map", "map", False),
        ("segnet-basic", "camvid", "miou", True),
        ("dcgan", "cifar10", "fid", True),
        ("deep-convnet", "mnist", "accuracy", False),  # it is a row of the table
    ],
)
def test_a_paper_is_quoted_only_beside_its_dataset(tmp_path, recipe, data, metric, is_noted):
    create_run(tmp_path / "a", 0.9, recipe=recipe, data=data, metric=metric)
    ((board,), _) = leaderboard_runs.load_leaderboards(tmp_path)
    assert any("the paper of" in note for note in board.notes) == is_noted


def test_panels_need_more_than_one_point(tmp_path):
    create_run(tmp_path / "digits" / "a", 0.9)
    ((board,), _) = leaderboard_runs.load_leaderboards(tmp_path / "digits")
    assert leaderboard_page.plot_curves(board) == leaderboard_page.plot_costs(board) == []
    create_run(tmp_path / "digits" / "b", 0.8, multiply_adds=None)
    ((board,), _) = leaderboard_runs.load_leaderboards(tmp_path / "digits")
    assert leaderboard_page.plot_curves(board) == []
    assert [caption for caption, _ in leaderboard_page.plot_costs(board)] == [
        "accuracy by parameters",
        "accuracy by seconds",
    ]
    create_run(tmp_path / "cifar10" / "a", 0.9, data="cifar10")
    ((board,), _) = leaderboard_runs.load_leaderboards(tmp_path / "cifar10")
    (caption, figure), *others = leaderboard_page.plot_costs(board)  # the second point is a published result
    assert (caption, len(figure.axes[0].lines), others) == ("accuracy by parameters", 2, [])


def test_published_results_for_an_archive_are_chosen_by_its_name(tmp_path):
    create_run(tmp_path / "a", 0.9, data="somewhere/CIFAR-10.zip")
    create_run(tmp_path / "b", 30.0, data="cifar10", metric="fid")
    by_metric = {board.metric: board for board in leaderboard_runs.load_leaderboards(tmp_path)[0]}
    assert [entry.year for entry in by_metric["accuracy"].published] == [2021, 2022, 2014]
    assert by_metric["fid"].published == []


def test_unfinished_and_corrupted_runs_are_listed(fukami, tmp_path):
    create_run(tmp_path / "a", 0.5)
    create_run(tmp_path / "young")
    create_run(tmp_path / "stopped", 0.4, epochs=10)
    create_run(tmp_path / "torn", 0.3)
    with (tmp_path / "torn" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 200, "phase": "eval", "accuracy": "high", "bad": null}\n[1]\n{"step": 200, "phase": "ev')
    create_run(tmp_path / "wreck", 0.2).joinpath("recipe.json").write_text('{"recipe": "deep-')
    create_run(tmp_path / "gone", 0.1, recipe="mine.py", parameters=None, multiply_adds=None)
    result = fukami("board", ".")
    assert result.status == 0, result.err
    assert get_cells(result, "young")[:4] == ["–", "young", "deep-convnet", "unfinished"]
    assert "1 of 10" in " ".join(get_cells(result, "stopped"))
    assert " ".join(get_cells(result, "torn")[:5]) == "3 torn deep-convnet 30.00 %"
    assert " ".join(get_cells(result, "gone")[:7]) == "4 gone mine.py 10.00 % val –"
    assert " ".join(get_cells(result, "wreck")[:7]) == "1 wreck – 20.00 % val –"
    assert "unknown data: accuracy" in result.out
    assert "wreck: recipe.json is corrupted" in result.err
    assert "torn: metrics.jsonl has a line" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1, "phase": "eval", "accuracy": 0.5, "count": -Infinity}',
        "[" + "[]," * (1 << 19) + "[]]",
        json.dumps({"step": 1, "phase": "eval"} | {f"m{i}": 0.5 for i in range(2000)}),
    ],
)
def test_a_line_that_no_run_writes_is_not_read(tmp_path, line, monkeypatch):
    folder, lengths, loads = create_run(tmp_path / "a", 0.5), [], json.loads
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line)
    monkeypatch.setattr(json, "loads", lambda text: lengths.append(len(text)) or loads(text))
    (board,), reasons = leaderboard_runs.load_leaderboards(tmp_path)
    assert (board.metric, board.runs[0].result) == ("accuracy", 0.5)
    assert reasons == {"metrics.jsonl has a line that cannot be read": ["a"]}
    assert max(lengths) <= 1 << 20


def test_parameters_of_a_run_without_its_recipe_come_from_the_weights(tmp_path):
    folder = create_run(tmp_path / "a", 0.5, recipe="mine.py", parameters=None, multiply_adds=None)
    (folder / "weights.safetensors").write_bytes(
        (run_folder.BUNDLED_WEIGHTS_DIR / "deep-convnet" / "weights.safetensors").read_bytes()
    )
    (board,), _ = leaderboard_runs.load_leaderboards(tmp_path)
    assert board.runs[0].parameters == 123_552
    assert board.runs[0].multiply_adds is None


def test_different_test_splits_are_reported(fukami, tmp_path):
    create_run(tmp_path / "a", 0.5)
    other = create_run(tmp_path / "b", 0.5) / "metrics.jsonl"
    other.write_text(other.read_text().replace("359", "100"))
    assert "evaluated on different data (val with 100 items, val with 359 items)" in fukami("board", ".").out


def test_the_leaderboard_of_a_single_trained_run(fukami):
    """The folder is the run itself, and ``--out`` sets the page."""
    (trained,) = fukami("train", "deep-convnet", "--epochs", "1", "--batch-size", "100").json
    result = fukami("board", trained["run"], "--out", "page.html")
    assert result.status == 0, result.err
    row = " ".join(get_cells(result, "deep-convnet"))
    assert row.startswith(f"1 deep-convnet deep-convnet {100 * trained['accuracy']:.2f} % val 124 k 8.77 M")
    assert result.err == "page: page.html\n"


def test_the_page_is_self_contained(fukami, tmp_path):
    """The page has tables, curves, costs and commands; names of runs are escaped."""
    create_run(tmp_path / "runs" / "<b>one</b>", 0.9, 0.95, data="mnist")
    create_run(tmp_path / "runs" / "young", data="mnist")
    create_run(tmp_path / "runs" / "[b]", 0.91, data="mnist")
    create_run(tmp_path / "runs" / "other", 0.5, 0.6)
    for index in range(12):
        create_run(tmp_path / "runs" / "many" / str(index), 0.5, 0.6 + index / 100)
    result = fukami("board", "runs")
    assert result.status == 0, result.err
    assert result.err == "page: runs/board.html\n"
    assert get_cells(result, "[b]")[0] == "2"
    page = (tmp_path / "runs" / "board.html").read_text()
    # mnist: two curves, a legend, three costs; digits: two curves and a legend for each, three costs for the twelve
    assert page.count("data:image/svg+xml;base64,") == 12
    assert "<b>one" not in page
    assert "&lt;b&gt;one&lt;/b&gt;" in page
    assert "--out &#39;&lt;other&gt;&#39;</div>" in page
    assert re.search(r'<tr class="published"><td class="number">pub. 2013</td><td class="name">DropConnect', page)
    assert re.search(r'<tr class="unfinished"><td class="number">–</td><td class="name">young', page)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert fukami("board", "runs").status == 0


def test_figures_show_all_runs(tmp_path):
    create_run(tmp_path / "a", 0.8, 0.9)
    create_run(tmp_path / "b", 0.7, 0.85)
    (board,), _ = leaderboard_runs.load_leaderboards(tmp_path)
    epochs, seconds = (figure.axes[0] for _, figure in leaderboard_page.plot_curves(board)[:2])
    assert [list(line.get_xdata()) for line in epochs.lines] == [[1, 2], [1, 2]]
    assert [list(line.get_xdata()) for line in seconds.lines] == [[2, 4], [2, 4]]
    assert [list(line.get_ydata()) for line in epochs.lines] == [[0.8, 0.9], [0.7, 0.85]]
    points = {
        caption: [line.get_xydata()[0].tolist() for line in figure.axes[0].lines]
        for caption, figure in leaderboard_page.plot_costs(board)
    }
    assert points["accuracy by parameters"] == [[123_552, 0.85], [123_552, 0.9]]
    assert points["accuracy by seconds"] == [[4, 0.85], [4, 0.9]]


@pytest.mark.parametrize("metric", ["accuracy", "fid"])
def test_axis_limits_of_curves_and_costs(tmp_path, metric):
    """A failed run is outside the limits of the curves, but inside those of the costs."""
    good, failed = ([0.9, 0.91, 0.92, 0.93], 0.1) if metric == "accuracy" else ([23.0, 22.0, 21.0, 20.0], 300.0)
    create_run(tmp_path / "a", *good, metric=metric)
    create_run(tmp_path / "b", failed, metric=metric)
    (board,), _ = leaderboard_runs.load_leaderboards(tmp_path)
    low, high = leaderboard_page.plot_curves(board)[0][1].axes[0].get_ylim()
    assert all(low < value < high for value in good)
    assert not low < failed < high
    for _, figure in leaderboard_page.plot_costs(board):
        low, high = figure.axes[0].get_ylim()
        assert low < failed < high
        assert low < good[-1] < high


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (123_552, "124 k"), (999_999, "1 M"), (8_770_000, "8.77 M"), (None, "–")],
)
def test_counts_are_formatted_with_three_digits(count, text):
    assert leaderboard_table.abbreviate_count(count) == text


def test_errors_for_an_empty_and_a_missing_folder(fukami, tmp_path):
    result = fukami("board", ".")
    assert (result.status, result.out) == (1, "")
    assert "recipe.json and metrics.jsonl" in result.err
    assert fukami("board", "nowhere").status == 2


def test_a_narrow_terminal_omits_the_columns_that_the_command_shows(tmp_path):
    create_run(tmp_path / "a", 0.5)
    (board,), _ = leaderboard_runs.load_leaderboards(tmp_path)
    wide, narrow = (leaderboard_table.format_table(board, width)[1].split() for width in (200, 80))
    columns = ["recipe", "accuracy", "split", "params", "mult-adds", "seconds", "epochs", "seed", "device"]
    assert wide == ["\x1b[1m#", "run", *columns[:-1], "device\x1b[0m"]
    assert narrow == ["\x1b[1m#", "run", *columns[1:-3], "epochs\x1b[0m"]


def test_long_names_are_wrapped_in_a_narrow_terminal(tmp_path):
    """The columns after the names are aligned; Japanese characters take two columns."""
    create_run(tmp_path / "folder" / ("x" * 60), 0.5)
    create_run(tmp_path / "犬と猫の画像", 0.6)
    (board,), _ = leaderboard_runs.load_leaderboards(tmp_path)
    lines = [re.sub(r"\x1b\[\dm", "", line) for line in leaderboard_table.format_table(board, 80)]
    widths = [len(line) + sum(letter in "犬と猫の画像" for letter in line) for line in lines]
    assert widths[0] == len("digits: accuracy")
    assert widths[1:4] == [80, 80, 80]
    parts = [line.split()[-1] for line in lines[4:]]
    assert lines[3].split()[1] + "".join(parts) == "folder/" + "x" * 60
    assert leaderboard_table.format_table(board)[3].split()[1] == "folder/" + "x" * 60
