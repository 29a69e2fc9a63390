"""Where data sets with a known name are looked for."""

import os
from pathlib import Path


def candidates() -> list[Path]:
    """The folders that are searched, in order: ``$FUKAMI_DATA`` where it is set, then the cache folder."""
    given = os.environ.get("FUKAMI_DATA")
    return [*([Path(given)] if given else []), download_folder()]


def download_folder() -> Path:
    """The cache folder, ``~/.cache/fukami`` unless ``$XDG_CACHE_HOME`` says otherwise; it is not created here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fukami"
