"""YAML files that describe a dataset."""

from pathlib import Path

from fukami.data.parsing import Json, read_text
from fukami.errors import Error, require_extra

with require_extra("detect", "YOLO's data.yaml"):
    import yaml

MAX_YAML_BYTES = 256 << 10  # PyYAML reads a megabyte in ten seconds; the names of a thousand classes have 30 kB
NULL_VALUES = ("", "~", "null", "Null", "NULL", "none", "None")  # spellings of a missing value


def load_yaml(path: Path) -> dict[str, Json]:
    """Load the mapping of a YAML file, with scalars as their source text, or None without a value.

    Anchors are rejected: a few lines of them can expand to a value of any size.

    Raises:
        Error: the file is not valid YAML, nested too deeply, too large, or has anchors.
    """
    text = read_text(path, max_bytes=MAX_YAML_BYTES)
    try:
        content = yaml.load(text, _PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise Error(f"{path}{where}: is not valid YAML ({getattr(error, 'problem', error)}); fix it") from None
    except RecursionError:
        raise Error(f"{path}: is not the YAML of a dataset (it is nested too deeply); fix it") from None
    if not isinstance(content, dict):
        return {}
    return {key: None if value in NULL_VALUES else value for key, value in content.items() if isinstance(key, str)}


class _PlainLoader(yaml.BaseLoader):
    """PyYAML loader without types and anchors; the numbers of YAML 1.1 can take hours to compute."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not supported", event.start_mark)
        return super().compose_node(parent, index)
