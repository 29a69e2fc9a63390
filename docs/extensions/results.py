"""Sphinx extension for measured results: every number is computed from rows of benchmarks/results.csv.

In the pages, these are replaced before they are parsed; the factor, such as 100 or 1/60, is optional:

    ```{results}             table of all landmarks of docs/results.toml; running this file writes it into the READMEs
    ```{results} PAGE        table of the results of a landmark's page, with their rows
    {value}`BENCHMARK; METRIC; COMMIT; FORMAT; FACTOR`      the mean of the values over the seeds, times the factor
    {seconds}`BENCHMARK; METRIC; COMMIT; FORMAT; FACTOR`    the mean of the durations, times the factor
    {range}`BENCHMARK; METRIC; COMMIT; FORMAT; FACTOR`      the lowest and the highest value, times the factor
"""

import csv
import re
import tomllib
from fractions import Fraction
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parents[2]
MARKERS = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)
NUMBER = re.compile(r"\{[^}]*\}")
DIRECTIVE = re.compile(r"^```\{results\} *(\S*)\n```$", re.MULTILINE)
ROLE = re.compile(r"\{(value|seconds|range)\}`([^`]+)`")
HEADERS = {
    "en": ("landmark", "source", "task", "published result", "our result and its data", "bundled weights"),
    "ja": ("手法", "出典", "タスク", "公表値", "本実装の結果とデータ", "同梱の重み"),
}
NOT_MEASURED = {"en": "not measured", "ja": "未測定"}


@cache
def load_landmarks() -> list[dict[str, Any]]:
    """Load the landmarks with their claims."""
    return list(tomllib.loads((ROOT / "docs/results.toml").read_text(encoding="utf-8"))["landmark"])


@cache
def load_rows() -> list[dict[str, str]]:
    """Load the rows of results.csv."""
    return list(csv.DictReader((ROOT / "benchmarks/results.csv").read_text(encoding="utf-8").splitlines(keepends=True)))


def find_rows(claim: dict[str, Any]) -> list[dict[str, str]]:
    """Find the rows of a claim, one for each seed; the commit may be followed by flags that select by the command.

    Raises:
        LookupError: there are none, or several for a seed.
    """
    commit, _, flags = claim["commit"].partition(" ")
    key = {"benchmark": claim["benchmark"], "metric": claim["metric"], "commit": commit}
    pattern = rf"{re.escape(flags)}(?!\S)"
    rows = [row for row in load_rows() if key.items() <= row.items() and re.search(pattern, row["command"])]
    seeds = [row["seed"] for row in rows]
    if not rows or len(set(seeds)) < len(seeds):
        raise LookupError(f"{len(rows)} rows have {', '.join(key.values())} {flags}; expected one for each seed")
    return rows


def format_value(claim: dict[str, Any], value: float, language: str = "en") -> str:
    """Format a value of a claim."""
    return str(claim[language]).format(value * claim.get("scale", 1), **claim).replace("%", " %")


def format_claim(claim: dict[str, Any], language: str = "en") -> str:
    """Format the mean over the seeds, and their number; ``{minutes}`` is the mean duration."""
    rows = find_rows(claim)
    claim = claim | ({"minutes": mean(float(row["seconds"]) for row in rows) / 60} if rows[0]["seconds"] else {})
    text = format_value(claim, mean(float(row["value"]) for row in rows), language)
    if not rows[0]["seed"]:
        return text
    if language == "en":
        return f"{text}, {'one seed' if len(rows) == 1 else f'mean of {len(rows)} seeds'}"
    seeds = "1 シード" if len(rows) == 1 else f"{len(rows)} シードの平均"
    return f"{text[:-1]}、{seeds}）" if text.endswith("）") else f"{text}（{seeds}）"


def build_table(language: str, prefix: str) -> str:
    """Build the table of all landmarks in Markdown; ``prefix`` is the path to the pages."""
    lines = [HEADERS[language], ("---",) * 6]
    for landmark in load_landmarks():
        texts = landmark | (landmark["ja"] if language == "ja" else {})
        cells: dict[bool, list[str]] = {False: [], True: []}
        for claim in (claim for claim in landmark.get("claims", ()) if not claim.get("details")):
            cells[claim.get("weights", False)].append(format_claim(claim, language))
        ours, weights = (("、" if language == "ja" else "; ").join(cells[bundled]) for bundled in (False, True))
        name = f"[{texts['name']}]({prefix}{landmark['page']})"
        columns = (texts[key] for key in ("source", "task", "published"))
        lines.append((name, *columns, ours or NOT_MEASURED[language], weights or "–"))
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return table.replace(" %", "%") if language == "ja" else table


def build_page_table(page: str) -> str:
    """Build the table of the results of a landmark's page, with the rows that they are computed from."""
    landmarks = [landmark for landmark in load_landmarks() if landmark["page"] == page]
    if not landmarks:
        raise LookupError(f"results.toml has no landmark with the page {page}")
    published = "".join("- {name} ({source}), {task}: {published}\n".format_map(landmark) for landmark in landmarks)
    if not (claims := [claim for landmark in landmarks for claim in landmark.get("claims", ())]):
        return f"Published result:\n\n{published}\nOur result: not measured.\n"
    lines = [("result", "spread over the seeds", "benchmark", "commit", "hardware", "command"), ("---",) * 6]
    for claim in claims:
        rows = find_rows(claim)
        values = [float(row["value"]) for row in rows]
        numbers = min(values), max(values), stdev(values) if len(values) > 1 else 0.0
        low, high, deviation = (format_value({**claim, "en": NUMBER.findall(claim["en"])[0]}, v) for v in numbers)
        spread = f"{low} to {high}, standard deviation {deviation}" if len(values) > 1 else "–"
        lines.append((format_claim(claim), spread, f"{claim['benchmark']}, {claim['metric']}", f"`{claim['commit']}`",
                      rows[0]["hardware"], f"`{rows[0]['command']}`"))  # fmt: skip
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return f"Published result:\n\n{published}\nOur results; flags are those of the commit:\n\n{table}"


def format_role(match: re.Match[str]) -> str:
    """Format the number of a role in the text of a page."""
    benchmark, metric, commit, spec, *factor = " ".join(match[2].split()).split("; ")
    rows = find_rows({"benchmark": benchmark, "metric": metric, "commit": commit})
    column, scale = "seconds" if match[1] == "seconds" else "value", float(Fraction(*factor or "1"))
    numbers = [float(row[column]) * scale for row in rows]
    statistics = (min(numbers), max(numbers)) if match[1] == "range" else (mean(numbers),)
    return " to ".join(f"{number:{spec}}" for number in statistics).replace("% to", " to").replace("%", " %")


def replace_directives(text: str, prefix: str) -> str:
    """Replace the directives and roles in the text of a page."""
    text = ROLE.sub(format_role, text)
    return DIRECTIVE.sub(lambda match: build_page_table(match[1]) if match[1] else build_table("en", prefix), text)


def update_readme(path: Path, language: str) -> str:
    """Return the text of a README with the current table."""
    return MARKERS.sub(lambda match: match[1] + build_table(language, "docs/") + match[2], path.read_text("utf-8"))


def setup(app: Any) -> dict[str, bool]:
    """Connect the extension to Sphinx."""

    def replace(app: Any, name: str, source: list[str]) -> None:
        source[0] = replace_directives(source[0], "../" * name.count("/"))

    app.connect("source-read", replace)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    for file, language in (("README.md", "en"), ("README.ja.md", "ja")):
        (ROOT / file).write_text(update_readme(ROOT / file, language), encoding="utf-8")
