"""What the errors of this folder say: the flags to change, lists of choices, the cause of what failed inside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Flags:
    """What a command calls these arguments of `load_images`, for errors that name the one to change.

    The others have one name in all commands.
    """

    split: str = "--split"
    label_column: str = "--label_column"
    max_samples: str = "--max_samples"


STANDARD_FLAGS = Flags()


def listed(names: Iterable[object], most: int = 20) -> str:
    """Quoted and separated by commas; of more than `most`, how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(map(repr, names[:most])) or "(none)") + more


def reason(error: BaseException) -> str:
    """The message at the root of a chain of exceptions, as part of a sentence: one line, no final stop."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = " ".join(str(error).split()).rstrip(".")
    return text[:300] or type(error).__name__
