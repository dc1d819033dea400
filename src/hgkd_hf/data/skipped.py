"""The file that names rows which could not be used: one line each, `row <tab> path <tab> reason`."""

from __future__ import annotations

import os
import re
from pathlib import Path

SKIPPED_FILE = "skipped.tsv"
# As text/tab-separated-values has it: what would end a field or a line is written with a backslash.
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_MEANINGS = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}


def append_skipped(file: str | os.PathLike[str], row: int, path: str | None, reason: str) -> None:
    """Add a line; a row without a path has `-`. Names that are no valid text are kept in a readable form."""
    line = "\t".join(field.translate(_ESCAPES) for field in (str(row), path or "-", reason))
    # One write of one line, since several processes append to the file.
    with open(file, "a", encoding="utf-8", errors="backslashreplace", newline="\n") as lines:
        lines.write(line + "\n")


def read_skipped(file: str | os.PathLike[str]) -> list[tuple[int, str, str]]:
    """(row, path, reason) of every line; none where there is no file."""
    if not Path(file).is_file():
        return []
    lines = Path(file).read_text(encoding="utf-8").split("\n")[:-1]
    fields = ([_unescape(field) for field in line.split("\t")] for line in lines)
    return [(int(row), path, reason) for row, path, reason in fields]


def count_skipped(file: str | os.PathLike[str]) -> int:
    """How many images the file names, each once, however often and by however many processes it was met."""
    return len({(row, path) for row, path, _ in read_skipped(file)})


def _unescape(field: str) -> str:
    return re.sub(r"\\(.)", lambda found: _MEANINGS.get(found[1], found[0]), field)
