"""Configuration of Sphinx; `make docs` builds the pages of this folder into `_build`."""

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "fukami"
author = "fukami contributors"
copyright = "fukami contributors, Apache-2.0"
version = release = version_of("fukami")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "commands",
    "mathml",
    "results",
]
exclude_patterns = ["_build", "examples", "extensions", "figures", "static"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4  # README and the pages link to headings

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False

smartquotes_action = "qe"  # quotes and ellipses; -- starts an option

html_math_renderer = "mathml"
copybutton_selector = "div.highlight-bash pre"  # commands, and not their output

html_static_path = ["static"]
html_css_files = ["style.css"]

html_theme = "furo"
html_title = f"fukami {release}"
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
if repository := os.environ.get("GITHUB_REPOSITORY"):  # in a workflow of GitHub: links from each page to its source
    html_theme_options |= {
        "source_repository": f"https://github.com/{repository}/",
        "source_branch": "main",
        "source_directory": "docs/",
    }


def setup(app):
    """Show the docstrings of fields unchanged, and set the language of the Japanese pages."""
    fields = {}  # napoleon would parse the text before a colon in their docstrings as a type

    def keep(app, what, name, obj, options, lines):
        if what in ("attribute", "property"):
            fields[name] = list(lines)

    def restore(app, what, name, obj, options, lines):
        lines[:] = fields.pop(name, lines)

    def set_language(app, name, template, context, doctree):
        if name.startswith("ja/"):
            context["language"] = "ja"

    app.connect("html-page-context", set_language)
    app.connect("autodoc-process-docstring", keep, priority=400)
    app.connect("autodoc-process-docstring", restore, priority=600)
