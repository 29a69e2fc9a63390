"""What goes wrong in a way that the user can mend."""

import difflib
from collections.abc import Iterable


class Error(Exception):
    """A failure that the user can mend; the message says what was given, what was expected and what to do."""


class UsageError(Error):
    """A wrong name, flag or combination of flags; the command line leaves with status 2."""


def unknown(kind: str, given: str, valid: Iterable[str]) -> UsageError:
    """The error for a name that does not exist, with the nearest that do."""
    names = sorted(valid)
    near = difflib.get_close_matches(given[:100], names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the valid ones are {', '.join(names)}"
    return UsageError(f"unknown {kind} {given[:200]!r}; {hint}")
