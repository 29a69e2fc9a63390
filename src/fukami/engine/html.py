"""HTML pages from the templates in ``templates``; every value is escaped."""

import base64
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def render_page(template: str, **values: object) -> bytes:
    """Render a template as a UTF-8 page; file names with undecodable bytes contain escapes of these."""
    return _create_environment().get_template(template).render(values).encode(errors="backslashreplace")


def build_data_url(content: bytes, kind: str) -> str:
    """Build the URL that contains an image file of this kind, such as png."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@cache
def _create_environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("fukami.engine"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
