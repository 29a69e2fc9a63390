"""Tests of the commands in the READMEs and the pages: their names, recipes and flags exist."""

import re
import shlex
from pathlib import Path

import pytest

from fukami.catalogue import RECIPES
from fukami.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
BLOCK = re.compile(r"^ *```(?:bash|text)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PLACEHOLDER = re.compile(r"[A-Z]+|<.*")


def list_commands(text):
    """List the arguments of the fukami commands in code blocks; a backslash continues a line, two spaces end it."""
    lines = [line for block in BLOCK.findall(text) for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()]
    lines = [re.split(r"  +|#| (?:[|>]|&&) ", line)[0] for line in lines if re.match(r"(\w+=\S+ )*fukami ", line)]
    words = [shlex.split(line) for line in lines]
    return [command[command.index("fukami") + 1 :] for command in words]


def list_flags(arguments):
    return {argument[2:].partition("=")[0] for argument in arguments if re.match(r"--\w", argument)}


FLAGS = {}  # of a command, or of a recipe


def get_flags(fukami, *arguments):
    if arguments not in FLAGS:
        FLAGS[arguments] = {"help", *re.findall(r"--([\w-]+)", fukami(*arguments, "--help").out)}
    return FLAGS[arguments]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_recipes_and_flags_exist(path, fukami):
    for name, *arguments in list_commands(path.read_text(encoding="utf-8")):
        if not re.match("[a-z]", name):
            continue  # --help, --version, a placeholder, or output
        assert name in COMMANDS, name
        has_recipe = name in ("train", "find-lr") and arguments and not arguments[0].startswith("-")
        if has_recipe and (arguments[0].endswith(".py") or PLACEHOLDER.fullmatch(arguments[0])):
            continue  # a recipe of the reader
        if has_recipe:
            assert arguments[0] in RECIPES, arguments
        assert list_flags(arguments) <= get_flags(fukami, name, *arguments[:has_recipe]), arguments


def test_the_pages_have_commands():
    assert sum(len(list_commands(path.read_text(encoding="utf-8"))) for path in PAGES) > 200
