"""Names say what they are: verbs for functions, one meaning for one name."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "fukami"
PARTICIPLES = {"begun", "chosen", "done", "drawn", "found", "given", "held", "kept", "known", "left", "made", "seen"}
INTERFACES = {  # names that several modules of a package share on purpose, as one is chosen among them
    "cli": {"command"},
    "quantization": {"prepack_weights", "pack_signs", "convolve", "max_pool"},
}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_is_called_by_a_participle(path):
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
