"""Tests of the reference of the command line: every command, recipe and option is on its pages."""

import re
from pathlib import Path

import commands as reference
import pytest

from fukami.catalogue import RECIPES
from fukami.cli.main import COMMANDS

PAGES = Path(__file__).parents[2] / "docs" / "reference"
FLAG = re.compile(r"--[a-z][\w-]*")


def list_directives(kind):
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES.glob("*.md"))
    return [name for found, name in reference.DIRECTIVE.findall(text) if found == kind]


def test_every_command_and_task_has_a_directive():
    assert sorted(list_directives("command")) == sorted(COMMANDS)
    assert sorted(list_directives("recipes")) == sorted({entry.task for entry in RECIPES.values()})


def list_help_flags(output):
    """List the flags in the output of --help: the first word of the left column; a switch has two."""
    rows = [line for line in output.splitlines() if re.match(r"[│ ]*--[a-z]", line)]
    flags = {re.sub("^--no-", "--", FLAG.search(row)[0]) for row in rows}
    return flags - {"--help"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_of_a_command_are_those_of_its_help(name, fukami):
    recipe = [reference.EXAMPLE_RECIPE] * (name in reference.RECIPE_COMMANDS)
    expected = list_help_flags(fukami(name, *recipe, "--help").out)
    if recipe:
        expected -= list_help_flags(fukami("find-lr" if name == "train" else "train", *recipe, "--help").out) - {
            "--out", "--device", "--precision"}  # fmt: skip
    names = re.findall(r"^`(--(?:no-)?[\w-]+)", reference.build_command(name), re.MULTILINE)
    assert {re.sub("^--no-", "--", flag) for flag in names} == expected


@pytest.mark.parametrize("task", sorted({entry.task for entry in RECIPES.values()}))
def test_the_options_of_a_recipe_are_those_of_its_help(task, fukami):
    text = reference.build_recipes(task)
    recipes = [name for name, entry in RECIPES.items() if entry.task == task]
    assert re.findall(r"^### `(.*)`$", text, re.MULTILINE) == recipes
    common, *sections = re.split(r"^### `.*`$", text, flags=re.MULTILINE)
    run_flags = set(FLAG.findall(reference.build_command("train")))
    for name, section in zip(recipes, sections, strict=True):
        flags = {re.sub("^--no-", "--", flag) for flag in re.findall(r"^`(--[\w-]+)", common + section, re.MULTILINE)}
        assert flags | run_flags >= list_help_flags(fukami("train", name, "--help").out) >= flags, name


def test_defaults_and_help_of_an_option():
    """The defaults of two recipes, from their papers and pages."""
    text = reference.build_recipes("reinforcement")
    assert "`--gamma FLOAT`\n: Discount factor gamma, 0 to 1. Default: `0.99`." in text
    text = reference.build_recipes("classification")
    assert "`--optimizer sgd|momentum|nesterov|adagrad|rmsprop|adam|adamw`" in text
    section = text.partition("### `resnet20`")[2].partition("###")[0]
    assert "`--size 32`" in section
    assert "`--shortcut A|B`" in section
