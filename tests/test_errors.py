"""Tests of the errors for packages that are not installed."""

import sys

import pytest

from fukami.errors import MissingPackageError, UsageError, require_extra


def test_a_missing_package_is_answered_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingPackageError) as raised, require_extra("detect", "YOLO's data.yaml"):
        import yaml  # noqa: F401
    assert str(raised.value) == (
        "YOLO's data.yaml needs pyyaml, which is not installed: pip install '.[detect]' in a checkout, or "
        "pip install 'fukami[detect]' with an installed wheel"
    )
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"^int8 needs onnx, .*wheel; or omit it$"):  # noqa: SIM117
        with require_extra("export", "int8", "omit it"):
            from onnx import helper  # noqa: F401


def test_other_import_errors_are_raised_unchanged():
    """A missing file of fukami itself, or a missing name in an installed package, is a bug."""
    with pytest.raises(ModuleNotFoundError, match=r"fukami\.nothing"), require_extra("detect", "R-CNN"):
        import fukami.nothing  # noqa: F401
    with pytest.raises(ImportError, match="nothing"), require_extra("detect", "R-CNN"):
        from json import nothing  # noqa: F401
