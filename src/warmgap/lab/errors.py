"""The exceptions of the lab that are meant for the person at the keyboard.

Whatever a person can mend is a `UserError`, in every function of the lab; what else one raises is said there.
"""

from __future__ import annotations

import errno
import sqlite3

INTERRUPTED = 130
"""The exit code of a command that was interrupted, and goes on when it is typed again."""


class UserError(Exception):
    """A mistake the user can mend: one clear sentence, no traceback, exit code 2.

    The command line prints the message alone (with `--debug`, the traceback too). Code that calls the lab as a library
    sees an ordinary exception.
    """


class RuleError(UserError):
    """A warm-up rule refuses a loss: the method failed, not the machine."""


class LostProcessError(UserError):
    """Another process of the same run has ended or does not answer."""


_APART = {"ray": "'warmgap[cluster]'", "datasets": "datasets", "pyarrow": "pyarrow"}
"""What is installed for packages that the extra `lab` does not bring."""


def missing(package: str) -> str:
    """The sentence on a package that is not installed."""
    install = _APART.get(package, "'warmgap[lab]'")
    return f"This needs the package {package}, which is not installed: pip install {install}."


def explained(error: Exception) -> str:
    """The sentence that says what went wrong."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return missing((error.name or str(error)).partition(".")[0])
    first = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    if not isinstance(error, OSError | sqlite3.Error):
        return f"{type(error).__name__}: {first}."
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in first:
        return "The disk is full: make room and run the same command again (train: with --resume); nothing is torn."
    name = getattr(error, "filename", None)
    return f"{getattr(error, 'strerror', None) or first}{f' ({name})' if name else ''}."
