"""Sphinx extension that writes formulas as MathML: browsers show them without scripts or a network connection."""

from typing import Any, NoReturn

from docutils import nodes
from latex2mathml.converter import convert


def visit_math(self: Any, node: nodes.Element) -> NoReturn:
    """Write a formula within a line."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_displaymath(self: Any, node: nodes.Element) -> NoReturn:
    """Write a formula on lines of its own."""
    self.body.append(self.starttag(node, "div", CLASS="math") + convert(node.astext(), display="block") + "</div>\n")
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    return {"parallel_read_safe": True}
