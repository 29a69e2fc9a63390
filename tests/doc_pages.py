"""The READMEs and the pages of the documentation, and the lines of their commands."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def join_lines(text):
    """Join each line that ends with a backslash and the next one."""
    return re.sub(r"\s*\\\n\s*", " ", text)


def cut_command(line):
    """Return a line without a comment, a redirection, or what two spaces separate from the command."""
    return re.split(r"  +|#| [|>] ", line)[0].strip()
