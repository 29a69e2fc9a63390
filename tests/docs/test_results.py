"""Tests of the results that the READMEs, the pages and ``fukami list`` state: all are computed from results.csv."""

import csv
import inspect
import re
import runpy
from pathlib import Path
from statistics import mean

import pytest
import results

from fukami.catalogue import RECIPES
from fukami.engine.recipe import get_recipe

ROOT = Path(__file__).parents[2]


def read_accuracy_rows():
    """Read the rows of DeepConvNet's accuracy, independently of the extension."""
    with (ROOT / "benchmarks" / "results.csv").open() as file:
        return [row for row in csv.DictReader(file)
                if row["benchmark"] == "deep-convnet mnist default" and row["metric"] == "test accuracy"]  # fmt: skip


@pytest.mark.parametrize(("name", "language"), [("README.md", "en"), ("README.ja.md", "ja")])
def test_the_readmes_have_the_current_table(name, language):
    """``python docs/extensions/results.py`` writes it."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert results.update_readme(ROOT / name, language) == text
    table = results.MARKERS.search(text)[0]
    assert table.count("| [") == len(results.load_landmarks())


def test_the_readmes_state_the_mean_accuracy_of_the_runs_of_the_bundled_weights():
    claim = {"benchmark": "deep-convnet mnist bundled", "metric": "test accuracy", "commit": "9217520"}
    rows = results.find_rows(claim)
    accuracy = f"{100 * mean(float(row['value']) for row in rows):.2f} %"
    assert len(rows) == 5
    assert f"the mean of the five is {accuracy}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"5 シードの平均は {accuracy.replace(' ', '')} です" in (ROOT / "README.ja.md").read_text(encoding="utf-8")


def test_the_page_on_history_has_the_errors_of_its_csv_file():
    with (ROOT / "docs/history/ilsvrc.csv").open(newline="", encoding="utf-8") as file:
        known = {(row["year"], float(row["top5_error_percent"])) for row in csv.DictReader(file)}
    page = (ROOT / "docs/history.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (20\d\d)(?:, second)? \|(?:[^|]*\|){3} ([\d.]+) \|", page, re.MULTILINE)
    assert len(rows) == 10
    for year, error in rows:
        digits = len(error.partition(".")[2])
        assert (year, float(error)) in {(other, round(value, digits)) for other, value in known}, (year, error)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch.utils.mkldnn
def test_the_tables_of_precisions_have_the_rows_of_results_csv(monkeypatch):
    """``python benchmarks/quantization.py figure`` writes them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks/quantization.py"))
    rows = {(row["benchmark"], row["metric"]): row for row in results.load_rows()}
    assert len(script["PLOTTED"]) == 2
    for names in script["PLOTTED"].values():
        points = [point for name in names for point in script["collect_points"](rows, name)]
        text = (ROOT / "docs/figures" / f"precision-{names[0]}.md").read_text(encoding="utf-8")
        assert text == script["format_table"](points)


def list_recipe_results():
    """Return the claims of results.toml by recipe."""
    claims = [claim for landmark in results.load_landmarks() for claim in landmark.get("claims", ())]
    return {claim["recipe"]: results.format_claim(claim) for claim in claims if "recipe" in claim}


def test_the_list_of_recipes_has_the_same_results():
    assert {name: entry.result for name, entry in RECIPES.items() if entry.result} == list_recipe_results()


@pytest.mark.parametrize(("recipe", "result"), list_recipe_results().items())
def test_the_docstring_of_a_recipe_has_the_same_result(recipe, result):
    number = re.search(r"\d+\.\d+", result)[0]
    (documented,) = re.findall(r"^Result: (.*?)\n\n", inspect.getdoc(get_recipe(recipe)), re.MULTILINE | re.DOTALL)
    assert number in documented


def test_the_list_of_recipes_has_the_same_published_results():
    published = {
        recipes[0]: landmark["published"].split()[0]
        for landmark in results.load_landmarks()
        if (recipes := [claim["recipe"] for claim in landmark.get("claims", ()) if "recipe" in claim])
    }
    assert len(published) == 16
    assert published == {recipe: RECIPES[recipe].paper_result.split()[0] for recipe in published}


def test_a_claim_is_the_mean_over_the_seeds():
    values = [float(row["value"]) for row in read_accuracy_rows()]
    assert len(values) == 5
    expected = f"{100 * mean(values):.2f} % MNIST, mean of 5 seeds"
    assert list_recipe_results()["deep-convnet"] == expected
    page = results.build_page_table("landmarks/deep-convnet.md")
    assert f"| {100 * min(values):.2f} % to {100 * max(values):.2f} %, standard deviation 0.04 % |" in page


def test_a_claim_states_the_mean_duration_of_its_rows():
    claim = {"benchmark": "deep-convnet mnist default", "metric": "test accuracy", "commit": "0643928"}
    minutes = mean(float(row["seconds"]) for row in read_accuracy_rows()) / 60
    assert f"in {minutes:.2f} minutes" in results.format_claim({**claim, "en": "{:.2%} in {minutes:.2f} minutes"})
    without_seconds = {"benchmark": "dqn rate auto", "metric": "relative memory vs. Stable-Baselines3 in float32"}
    with pytest.raises(LookupError, match="minutes"):
        results.format_claim({**without_seconds, "commit": "a665d22", "en": "{:.2f} in {minutes:.2f} minutes"})


@pytest.mark.parametrize("field", ["benchmark", "metric", "commit"])
def test_a_claim_without_rows_is_an_error(field):
    claim = next(claim for landmark in results.load_landmarks() for claim in landmark.get("claims", ()))
    with pytest.raises(LookupError, match="0 rows"):
        results.format_claim({**claim, field: "unknown"})


def test_a_claim_with_two_rows_of_a_seed_is_an_error(monkeypatch):
    claim = next(claim for landmark in results.load_landmarks() for claim in landmark.get("claims", ()))
    rows = [*results.load_rows(), results.find_rows(claim)[0]]
    monkeypatch.setattr(results, "load_rows", lambda: rows)
    with pytest.raises(LookupError, match="expected one for each seed"):
        results.format_claim(claim)


def test_flags_after_the_commit_select_rows_by_their_command():
    benchmark = {"benchmark": "dcgan cifar10", "metric": "frechet_vgg16"}
    (row,) = results.find_rows({**benchmark, "commit": "a665d22 --stable"})
    assert "--lr 0.0004 --stable" in row["command"]
    with pytest.raises(LookupError, match="4 rows"):
        results.find_rows({**benchmark, "commit": "a665d22"})
    for flags in ("--unknown", "--lr 0.000"):  # a part of a value is not a flag
        with pytest.raises(LookupError, match="0 rows"):
            results.find_rows({**benchmark, "commit": f"a665d22 {flags}"})


def test_what_has_no_claim_is_not_measured():
    page = results.build_page_table("landmarks/alexnet.md")
    published = "- AlexNet (Krizhevsky et al. 2012, table 2), classification, ImageNet top-1: 59.3 % (one network)\n"
    assert page == f"Published result:\n\n{published}\nOur result: not measured.\n"
    with pytest.raises(LookupError, match=r"no landmark with the page landmarks/unknown\.md"):
        results.build_page_table("landmarks/unknown.md")
    (row,) = (row for row in results.build_table("en", "").splitlines() if "[AlexNet]" in row)
    assert "| not measured |" in row


def test_directives_are_replaced_in_pages():
    text = "before\n\n```{results}\n```\n\n```{results} landmarks/dcgan.md\n```\n"
    replaced = results.replace_directives(text, "../")
    assert "```" not in replaced
    assert "(../landmarks/dcgan.md)" in replaced
    assert "72.70 % CIFAR-10, features learned there, one seed" in replaced


def test_roles_in_the_text_are_replaced_by_the_mean_over_the_seeds():
    rows = read_accuracy_rows()
    name = f"deep-convnet mnist default; test\naccuracy; {rows[0]['commit']}"
    text = (
        f"of {{value}}`{name}; .2%` (errors: {{value}}`{name}; .0f; 10_000`) in {{seconds}}`{name}; .1f; 1/60` minutes"
    )
    accuracy = mean(float(row["value"]) for row in rows)
    minutes = mean(float(row["seconds"]) for row in rows) / 60
    expected = f"of {accuracy * 100:.2f} % (errors: {accuracy * 10_000:.0f}) in {minutes:.1f} minutes"
    assert results.replace_directives(text, "") == expected
    values = [100 * float(row["value"]) for row in rows]
    expected = f"({min(values):.2f} to {max(values):.2f} %)"
    assert results.replace_directives(f"({{range}}`{name}; .2%`)", "") == expected
    with pytest.raises(LookupError, match="0 rows"):
        results.replace_directives("{value}`deep-convnet mnist default; test accuracy; 0000000; .2%`", "")
