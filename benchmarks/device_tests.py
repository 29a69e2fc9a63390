"""Run the tests that need a GPU, and record the number of passed tests.

    python benchmarks/device_tests.py [--select EXPRESSION]

``--select`` is pytest's ``-k`` to select other tests than those marked ``gpu``, for a test without a GPU. Warnings are
not errors, because the package versions on the GPU machine may differ.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from common.record import record

ROOT = Path(__file__).parents[1]
FILES = ("tests/quantization/test_binary_cuda.py", "tests/contract/test_devices.py")


def main() -> None:
    """Run the tests; the exit status is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--select", help="Test selection, pytest's -k.")
    options = parser.parse_args()
    selection = ["-k", options.select] if options.select else ["-m", "gpu"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-W", "default", *selection, f"--junit-xml={report}", *FILES]
        if not options.select and importlib.util.find_spec("xdist"):
            command += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"]
        status = subprocess.run(command, cwd=ROOT).returncode
        if not report.is_file():
            sys.exit(status)
        cases = list(ElementTree.parse(report).iter("testcase"))
    outcomes = [(case.attrib["name"], {child.tag for child in case}) for case in cases]
    failed = sorted(name for name, tags in outcomes if tags & {"failure", "error"})
    skipped = sum("skipped" in tags for _, tags in outcomes)
    seconds = sum(float(case.attrib["time"]) for case in cases)
    note = f"{len(failed)} failed, {skipped} skipped" + "".join(f"; {name}" for name in failed)
    record("device tests", "tests passed", len(outcomes) - len(failed) - skipped, seconds=seconds, note=note,
           command=f"python -m pytest {' '.join(selection)} {' '.join(FILES)}")  # fmt: skip
    sys.exit(status)


if __name__ == "__main__":
    main()
