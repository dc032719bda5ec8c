"""What a person is told when something cannot be done: one line, and an exit status that says whose it is.

In: what was wrong, the key and value that caused it, the rule, the remedy.
Out: ``WHAT (key = value): RULE. REMEDY`` as the text of an exception that carries its exit status.
A traceback is for our mistakes; these are for everybody else's.
"""

from typing import Any, Final

UNSET: Final = object()


class PlatformError(Exception):
    """Base of all errors with an exit status; the text is the one line that is printed."""

    status = 1

    def __init__(self, what: str, *, key: str | None = None, value: Any = UNSET, rule: str = "", remedy: str = "") -> None:
        self.what, self.key, self.value, self.rule, self.remedy = what, key, value, rule, remedy
        shown = key if value is UNSET else f"{key} = {plain(value)}"
        line = what + (f" ({shown})" if key else "") + (f": {rule}" if rule else "")
        super().__init__(" ".join((line + (f". {remedy}" if remedy else "")).split()))


def first_line(error: BaseException) -> str:
    """The first line of a library's message, without a closing full stop; the error's kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def plain(value: Any) -> str:
    """The value as it was typed; in quotes where it is empty or has blanks."""
    return repr(value) if isinstance(value, str) and (not value or " " in value or not value.isprintable()) else str(value)


class ConfigError(PlatformError, ValueError):
    """The configuration or the command line is wrong."""

    status = 2


class DataError(PlatformError, ValueError):
    """A corpus cannot be read, or holds too little."""

    status = 3


class CheckpointError(PlatformError, ValueError):
    """A checkpoint is missing, damaged, or does not fit."""

    status = 4


class StudyError(PlatformError):
    """A study or its storage cannot be used."""

    status = 5


class NumbersError(PlatformError, ArithmeticError):
    """A loss or gradient is not finite."""

    status = 6


class MachineError(PlatformError, RuntimeError):
    """The environment or its devices cannot do what was asked."""

    status = 7


class OutputError(PlatformError, OSError):
    """The output folder or its disk cannot be written."""

    status = 8
