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


def test_figures_have_a_description_and_a_caption_and_the_page_their_origin():
    pages = {}
    for path in (ROOT / "docs").rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        pages[path] = FIGURE.findall(text)
        assert text.count("{figure}") == len(pages[path]), path
        assert "![" not in text, path
    assert sum(map(len, pages.values())) > 40
    for page, figures in pages.items():
        assert all(":alt: " in options and caption.strip() for _, options, caption in figures), page
        if figures:
            assert re.search(
                r"`[^`]*(scripts/\w+\.py|python |fukami )[^`]*`", "".join(figure[2] for figure in figures)
            ), page
