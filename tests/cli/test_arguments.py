"""The arguments of the commands: their help and their groups."""

import dataclasses
import re
import subprocess
import sys
from collections import Counter

import pytest

from fukami.catalogue import RECIPES
from fukami.cli import arguments
from fukami.cli.arguments import GROUPS, build_description
from fukami.cli.main import COMMANDS
from fukami.engine.recipe import get_recipe

HEADINGS = [f"{group} options" for group in GROUPS]


@pytest.fixture
def narrow(monkeypatch):
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


def flags_of(help_text):
    """The flags of a help text by the title of their group; a terminal would have boxes around the groups."""
    groups, title = {}, None
    for line in help_text.splitlines():
        line = line.strip("│╭╮╰╯─ ")
        if line.endswith(" options"):
            title = line
        elif re.match("--[a-z]", line) and title:
            groups.setdefault(title, []).append(line.split()[0].rstrip(","))
    return groups


@pytest.mark.parametrize("name", RECIPES)
def test_help_of_a_recipe(fukami, narrow, name):
    """An example first, the flags in groups, each with a help text, and no placeholder of tyro's for what is empty."""
    text = fukami("train", name, "--help").out
    _, _, first, *_ = text.splitlines()
    assert first.startswith(f"example: fukami train {name}")
    assert not [word for word in ("(default: )", "None", "[STR", "[[") if word in text]
    assert max(len(line.rstrip()) for line in text.splitlines() if not line.startswith("usage:")) <= 80
    groups = flags_of(text)
    assert list(groups) == [heading for heading in HEADINGS if heading in groups]
    assert {"data options", "model options", "optimization options", "run options"} <= set(groups)
    assert groups["run options"][0] == "--seed"
    assert "--resume" in groups["run options"]
    fields = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(get_recipe(name))}
    assert fields <= {flag for flags in groups.values() for flag in flags}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("train", "find-lr")])
def test_help_of_a_command(fukami, narrow, command):
    text = fukami(command, "--help").out
    assert not [word for word in ("(default: )", "None", "[STR", "[[") if word in text]
    assert max(len(line.rstrip()) for line in text.splitlines() if not line.startswith("usage:")) <= 80


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("train", "find-lr")])
def test_help_of_a_command_lists_each_flag_once(fukami, narrow, monkeypatch, command):
    known = []
    order_words = arguments.order_words

    def record(words, flags, prog):
        known.extend(flag.flag for flag in flags)
        return order_words(words, flags, prog)

    monkeypatch.setattr(arguments, "order_words", record)
    text = fukami(command, "--help").out
    text = text.partition("positional arguments")[2] or text.partition("options")[2]  # after the example
    listed = re.findall(r"^  (--[a-z][a-z-]*|[A-Z]+\b)", text, re.MULTILINE)
    assert Counter(listed) == Counter(known)


def test_groups_name_fields_that_exist():
    fields = {field.name for name in RECIPES for field in dataclasses.fields(get_recipe(name))}
    named = [name for names in GROUPS.values() for name in names.split()]
    assert set(named) <= fields
    assert len(named) == len(set(named))


@pytest.mark.parametrize("name", RECIPES)
def test_docstring_of_a_recipe_has_its_results(name):
    """The paper's result and ours, as the catalogue has them."""
    text = build_description(get_recipe(name))
    entry = RECIPES[name]
    for result in filter(None, (entry.paper_result, entry.result)):
        number = result.split()[0]
        assert number in text or not number[0].isdigit(), (number, text)


def test_find_lr_of_every_supervised_recipe_has_help(fukami, narrow):
    for name in ("resnet18", "dqn"):  # a recipe may have a field called steps
        assert "--num-steps" in fukami("find-lr", name, "--help").out


def test_list_imports_no_recipe():
    code = "import sys; from fukami.cli.main import main\ntry: main(['list', '--all'])\nfinally: print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "resnet152" in process.stdout
    modules = set(process.stdout.splitlines()[-1].split())
    assert not {"torch", "fukami.engine.recipe", "fukami.classification.resnet"} & modules


def test_a_recipe_without_a_docstring_and_with_a_default_factory(fukami, tmp_path, narrow):
    """Its flags have the defaults of the factory, and its help shows no signature."""
    (tmp_path / "recipe.py").write_text(
        "from dataclasses import dataclass, field\n"
        "from fukami.classification.deep_convnet import DeepConvNet\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Custom(DeepConvNet):\n"
        '    names: tuple[str, ...] = field(default_factory=lambda: (\'a\', \'b\'))\n    """Names."""\n'
        "    half: float = field(init=False, default=0.5)\n"
    )
    text = fukami("train", "recipe.py", "--help").out
    assert "Custom(" not in text
    assert "Names. (default: a b)" in text
    assert "--half" not in text


def test_help_of_all_commands_imports_no_parser():
    code = "import sys; from fukami.cli.main import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    modules = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.splitlines()[-1].split()
    )
    assert "fukami.cli.train" in modules
    assert not {"tyro", "docstring_parser", "torch"} & set(modules)
