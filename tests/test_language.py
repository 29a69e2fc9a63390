"""Tests of names and prose: functions are verbs, public names are unique, prose uses the terms of the glossary."""

import ast
import itertools
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "fukami"
PARTICIPLES = {"begun", "chosen", "done", "drawn", "found", "given", "held", "kept", "known", "left", "made", "seen"}
INTERFACES = {  # names of interchangeable modules, which define the same functions on purpose
    "cli": {"command"},
    "quantization": {"prepack_weights", "pack_signs", "convolve", "max_pool"},
}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_name_is_a_participle(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = node.name.strip("_")
            assert name not in PARTICIPLES, f"{path.name}:{node.lineno} {node.name}"
            assert "_" in name or not name.endswith("ed"), f"{path.name}:{node.lineno} {node.name}"


@pytest.mark.parametrize("package", sorted(path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()))
def test_a_public_name_is_defined_once_in_a_package(package):
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / package).rglob("*.py"))
    defined = Counter(
        node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    )
    twice = {name for name, count in defined.items() if count > 1 and not name.startswith("_")}
    assert twice - INTERFACES.get(package, set()) == set()


# Words that docs/reference/glossary.md replaces; in help texts, errors, headings and the first lines of docstrings.
WORDS = re.compile(
    r"\b(picture|judg|answer|told\b|tells\b|ask(s|ed)?\b|said\b|seen\b|says\b|shares? of\b|so many|by chance|"
    r"from nothing|nobody|stumble|film\b|mend\b|paint|knob|rematerial|whoever|regime|course of the learning|"
    r"pull of|passes over|side by side|as one likes|affine layer|what to learn)",
    re.IGNORECASE,
)
FRAGMENT = re.compile(r"^(Of|That|What|So many|Those|Whether|How|Where|Which|Who|With|In which)\b")
PAGES = [path for path in (ROOT.parents[1] / "docs").rglob("*.md") if "_build" not in path.parts]


def iterate_texts(tree):
    """Yield the line and the text of each docstring's first line, field's help, and string in a raised error."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield getattr(node, "lineno", 1), docstring.splitlines()[0]
            if getattr(node, "name", "") == "run" and docstring:  # the arguments of a command
                yield node.lineno, docstring
        if isinstance(node, ast.ClassDef):  # help texts of fields
            for previous, statement in itertools.pairwise(node.body):
                if isinstance(previous, ast.AnnAssign) and isinstance(statement, ast.Expr):
                    yield statement.lineno, ast.literal_eval(statement.value)
        if isinstance(node, ast.Raise):
            for child in ast.walk(node):
                if isinstance(child, ast.Constant) and isinstance(child.value, str):
                    yield child.lineno, child.value


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_use_the_terms_of_the_glossary(path):
    for line, text in iterate_texts(ast.parse(path.read_text(encoding="utf-8"))):
        text = text.replace("Show and Tell", "").replace("show-and-tell", "")
        assert not WORDS.search(text), f"{path.name}:{line}: {text}"
        assert not FRAGMENT.match(text) or "\n" in text, f"{path.name}:{line}: {text}"


@pytest.mark.parametrize("path", sorted(PAGES), ids=lambda path: path.name)
def test_headings_use_the_terms_of_the_glossary(path):
    headings = [line for line in path.read_text(encoding="utf-8").splitlines() if re.match("#+ ", line)]
    for heading in headings:
        assert not WORDS.search(heading.replace("Show and Tell", "")), f"{path.name}: {heading}"
        assert not FRAGMENT.match(heading.lstrip("# ")), f"{path.name}: {heading}"
