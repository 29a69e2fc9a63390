"""Tests of the commands of benchmarks and figures in the documentation: the scripts exist and accept the arguments."""

import argparse
import re
import runpy
import shlex
import sys

import pytest

from doc_pages import PAGES, ROOT, cut_command, join_lines

VALUES = {"NETWORK": "segnet-vgg16"}  # of placeholders that are one of several choices


class ParsedError(Exception):
    """The script has parsed its arguments without an error."""


def list_scripts():
    """List the commands of scripts on all pages; a backslash continues a line, and two spaces or ``;`` end it."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    commands = re.findall(r"python ((?:benchmarks|docs)/\S+\.py[^`;\n]*)", join_lines(text))
    return sorted({cut_command(command) for command in commands})


SCRIPTS = list_scripts()


def test_the_pages_have_scripts():
    assert len(SCRIPTS) > 60


@pytest.mark.parametrize("command", SCRIPTS)
def test_scripts_exist(command):
    assert (ROOT / command.split()[0]).is_file()


@pytest.fixture
def stop_after_parsing(monkeypatch):
    """Stop a script with ``ParsedError`` after it has parsed its arguments."""
    depth = 0

    def stop(parse):
        def run(*arguments, **options):
            nonlocal depth
            depth += 1
            result = parse(*arguments, **options)
            depth -= 1
            if depth == 0:  # otherwise it was called to parse a part of the arguments, such as those of a subcommand
                raise ParsedError
            return result

        return run

    for name in ("parse_args", "parse_known_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stop(getattr(argparse.ArgumentParser, name)))


@pytest.mark.parametrize("command", [command for command in SCRIPTS if " " in command])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of packages that the script imports
def test_arguments_are_accepted(command, stop_after_parsing, monkeypatch):
    script, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [script, *(VALUES.get(argument, argument) for argument in arguments)])
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    try:
        with pytest.raises(ParsedError):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except ModuleNotFoundError as error:
        pytest.skip(f"{script} needs {error.name}, which is not installed")
