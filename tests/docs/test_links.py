"""Tests of the figures of all pages, and of the links in the READMEs and the other pages of the root.

The build of the documentation checks its own links.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md")]
FIGURE = re.compile(r"```\{figure\} (\S+)\n((?::.*\n)*)\n((?:.*\n)*?)```")
LINK = re.compile(r"\]\(([^)\s]+)\)|<(?:img|a)\b[^>]*?(?:src|href)=\"([^\"]+)\"")
ACTIONS = "../../actions/"  # pages of the repository beside its files: the badge


def list_links(path):
    links = [first or second for first, second in LINK.findall(path.read_text(encoding="utf-8"))]
    return [link for link in links if "://" not in link and not link.startswith(("#", ACTIONS))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_of_links_exist(path):
    for link in list_links(path):
        target = (path.parent / link.partition("#")[0]).resolve()
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link


def test_readmes_have_links_and_images():
    for name in ("README.md", "README.ja.md"):
        assert len(list_links(ROOT / name)) > 40
        assert "docs/figures/hero.webp" in list_links(ROOT / name)


def test_figures_have_a_description_and_a_caption_with_their_script_or_command():
    num_figures = 0
    for path in (ROOT / "docs").rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        figures = FIGURE.findall(text)
        num_figures += len(figures)
        assert text.count("{figure}") == len(figures), path
        assert "![" not in text, path
        for name, options, caption in figures:
            assert ":alt: " in options, (path, name)
            assert re.search(r"`[^`]*(scripts/\w+\.py|python |fukami )[^`]*`", caption), (path, name)
            assert all((ROOT / script).exists() for script in re.findall(r"`(docs/\S+\.py)", caption)), (path, name)
    assert num_figures > 40


@pytest.mark.parametrize("path", sorted((ROOT / "docs/landmarks").glob("*.md")), ids=lambda path: path.stem)
def test_pages_of_landmarks_have_the_same_sections(path):
    """The idea has an equation and a diagram."""
    title, *sections = path.read_text(encoding="utf-8").split("\n## ")
    assert title.startswith("# ")
    headings = [section.partition("\n")[0] for section in sections]
    assert headings == ["Idea", "Use", "Results", "Differences from the paper", "Cost", "References"]
    assert "$$" in sections[0]
    assert "{figure}" in sections[0]
    assert "{results}" in sections[2]


def test_both_landing_pages_have_the_same_commands_figures_and_links():
    """The Japanese one is in a folder of its own, and has a link to the glossary besides."""
    contents = []
    for name in ("index.md", "ja/index.md"):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        targets = re.findall(r"^:(?:link|img-top): (\S+)|\]\(([^)]+)\)", text, re.MULTILINE)
        links = [(first or second).removeprefix("../") for first, second in targets]
        links = [link for link in links if link not in ("index.md", "ja/index.md", "reference/glossary.md")]
        contents.append((re.findall(r"```bash\n(.*?)```", text, re.DOTALL), links))
    assert contents[0] == contents[1]
    assert len(contents[0][0]) == 3
    assert len(contents[0][1]) > 20
