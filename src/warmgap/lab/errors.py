"""The exceptions of the lab that are meant for the person at the keyboard.

Whatever a person can mend is a `UserError`, in every function of the lab; what else one raises is said there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """A mistake the user can mend: one clear sentence, no traceback, exit code 2.

    The command line prints the message alone (with `--debug`, the traceback too). Code that calls the lab as a library
    sees an ordinary exception.
    """


class RuleError(UserError):
    """A warm-up rule refuses a loss: the method failed, not the machine."""


class LostProcessError(UserError):
    """Another process of the same run has ended or does not answer."""


def missing(what: str, package: str, install: str = "'warmgap[lab]'") -> str:
    """The sentence on a package that is not installed."""
    return f"{what} needs the package {package}: pip install {install}."


@contextlib.contextmanager
def needs(what: str, package: str, install: str = "") -> Iterator[None]:
    """Turn an ImportError of the block into that sentence; the package is installed by its name unless said."""
    try:
        yield
    except ImportError as error:
        raise UserError(missing(what, package, install or package)) from error
