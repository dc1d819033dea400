"""What must not leave the machine: tokens and the places of files. Everything published goes through `public`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

HIDDEN = "<hidden>"
_SECRET = r"(?:token|secret|password|passwd|(?:api|access|private)_?key|credentials?)"
_SECRET_VARIABLE = re.compile(_SECRET, re.IGNORECASE)
_SECRET_KEY = re.compile(rf"(.*_)?{_SECRET}", re.IGNORECASE)
_SECRET_FLAG = re.compile(rf"(--(?:\w+_)?{_SECRET}(?:=| +))(?:'[^']*'|[^\s']+)", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
# `/a/b`, `~/a`, `../a`, `C:\a\b`: of two parts at least, and not the inside of a word, a Hub id or a URL.
_PATH = re.compile(
    r"(?<![\w/:.~-])(?:(?:~|\.\.)?(?:/[\w.@+-]+){2,}|(?:~|\.\.)(?:/[\w.@+-]+)+|[A-Za-z]:(?:\\[\w.@+-]+)+)/?"
)


def secrets() -> set[str]:
    """The tokens and keys that this process could give away: of the Hub, and of its environment."""
    named = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)}
    return {value for value in {*named, get_token() or ""} if len(value) >= 8}


def public(value: Any, paths: Iterable[str] = ()) -> Any:
    """A copy of plain data in which every local path is its last part, and every secret is hidden.

    Args:
        value: strings, numbers, None, and lists and dicts of them; other things become strings. The value of a key or
            flag that names a secret is hidden whatever it is.
        paths: paths known to occur in the strings; needed for those with spaces in them.
    """
    if isinstance(value, dict):
        return {
            str(key): HIDDEN if isinstance(item, str) and _SECRET_KEY.fullmatch(str(key)) else public(item, paths)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [public(item, paths) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = _text(value)
    for secret in sorted(secrets(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _SECRET_FLAG.sub(rf"\1{HIDDEN}", _HUB_TOKEN.sub(HIDDEN, text))
    for path in sorted({_text(path) for path in paths if is_local_path(path)}, key=len, reverse=True):
        text = text.replace(path, last_part(path))
    return _PATH.sub(lambda match: last_part(match[0]), text)


def _text(value: Any) -> str:
    """Without what cannot be written: a path may hold bytes that are no text."""
    return str(value).encode("utf-8", "replace").decode()


def is_local_path(name: str) -> bool:
    """Whether `name` is written like a path that means something on this machine only."""
    return os.path.isabs(name) or bool(re.match(r"(~|\.\.)(/|$)|[A-Za-z]:\\", name))


def last_part(path: str) -> str:
    """The last part of a path, of whatever system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def check_no_secrets(files: Iterable[Path]) -> None:
    """Read files for the secrets of this process; weights and features hold none.

    Raises:
        ValueError: one is in a file; the message names the file, not the secret.
    """
    known = [secret.encode() for secret in secrets()]
    for path in files:
        if path.suffix in (".safetensors", ".arrow"):
            continue
        content = path.read_bytes()
        if any(secret in content for secret in known) or re.search(rb"\bhf_[A-Za-z0-9]{30,}", content):
            raise ValueError(f"{path} holds a token or key of this machine: remove it, then publish again.")
