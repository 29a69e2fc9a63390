"""Run the tests that need a GPU, and record how many pass.

    python benchmarks/device_tests.py [--select EXPRESSION]

``--select`` is pytest's ``-k`` for other tests than those marked ``gpu``, for a trial without a GPU. Warnings are no
errors here: the versions on the machine with the GPU may be others.
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
    """Run them; the exit status is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--select", help="pytest's -k")
    options = parser.parse_args()
    which = ["-k", options.select] if options.select else ["-m", "gpu"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = [sys.executable, "-m", "pytest", "-q", "-W", "default", *which, f"--junit-xml={report}", *FILES]
        if not options.select and importlib.util.find_spec("xdist"):
            words += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"]
        status = subprocess.run(words, cwd=ROOT).returncode
        if not report.is_file():
            sys.exit(status)
        cases = list(ElementTree.parse(report).iter("testcase"))
    ends = [(case.attrib["name"], {child.tag for child in case}) for case in cases]
    failed = sorted(name for name, tags in ends if tags & {"failure", "error"})
    skipped = sum("skipped" in tags for _, tags in ends)
    seconds = sum(float(case.attrib["time"]) for case in cases)
    note = f"{len(failed)} failed, {skipped} skipped" + "".join(f"; {name}" for name in failed)
    record("device tests", "tests passed", len(ends) - len(failed) - skipped, seconds=seconds, note=note,
           command=f"python -m pytest {' '.join(which)} {' '.join(FILES)}")  # fmt: skip
    sys.exit(status)


if __name__ == "__main__":
    main()
