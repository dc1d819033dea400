"""What must not leave the machine: tokens and the places of files. Everything published goes through `public`."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

HIDDEN = "<hidden>"
_SECRET = r"(?:token|secret|password|passwd|(?:api|access|private)_?key|credentials?)"
_SECRET_VARIABLE = re.compile(_SECRET, re.IGNORECASE)
_SECRET_KEY = re.compile(rf"(.*[_-])?{_SECRET}", re.IGNORECASE)
# `--hub_token x`, `HF_TOKEN=x`, and in a URL `?api_key=x` or the signature of a signed one.
_SECRET_VALUE = re.compile(
    rf"(--(?:[\w-]+[_-])?{_SECRET} +|(?<![\w-])-{{0,2}}(?:[\w-]+[_-])?{_SECRET}=|[?&](?:[\w-]+-)?sig(?:nature)?=)"
    r"(?:'[^']*'|\"[^\"]*\"|[^\s'\"&]+)",
    re.IGNORECASE,
)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_PART = r"[^\s/\\'\"`()\[\]{},;:|<>]+"
# How paths begin that have a meaning on this machine alone: `~/`, `~me/`, `../`, `C:\`, `C:/`, `\\host\`, `\\?\C:\`,
# `file:///`, `file:///C:/`.
_BEGIN = r"(?:~\w*/|(?:\./)?\.\./|(?:(?i:file):/+|\\\\\?\\)?[A-Za-z]:[\\/]|\\\\|(?i:file):/+)"
# Such a path, or `/a/b`; not the inside of a word, a Hub id or a URL.
_PATH = re.compile(
    rf"(?<![\w/.~\\-])(?:(?:/|(?<!:)//+){_PART}(?:/+{_PART})+|{_BEGIN}(?:{_PART}[\\/]+)*(?:{_PART})?)/?"
)
_QUOTED = re.compile(rf"(['\"])((?:[\w-]+=)?)((?:{_BEGIN}|/).*?)\1")  # in quotes it may have spaces
_LOGIN = re.compile(r"(\w://)[^\s/?#'\"]+@")  # up to the last @: a password may have one


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
    known = [_text(path).rstrip("/\\") for path in paths if is_local_path(path)]
    return _public(value, known, sorted(secrets(), key=len, reverse=True))


def _public(value: Any, known: Sequence[str], hidden: Sequence[str]) -> Any:
    if isinstance(value, dict):
        return {
            _public(str(key), known, hidden): HIDDEN if _is_secret(key, item) else _public(item, known, hidden)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_public(item, known, hidden) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = _text(value)
    for secret in hidden:
        text = text.replace(secret, HIDDEN)
    text = _LOGIN.sub(r"\1", _SECRET_VALUE.sub(rf"\1{HIDDEN}", _HUB_TOKEN.sub(HIDDEN, text)))
    for path in sorted({*known, *([text] if os.path.exists(text) else [])}, key=len, reverse=True):
        text = text.replace(path, "~" if path.rstrip("/\\") == _home() else last_part(path)) if path else text
    text = _without_home(text)
    text = _QUOTED.sub(lambda found: f"{found[1]}{found[2]}{last_part(found[3])}{found[1]}", text)
    return _PATH.sub(lambda found: last_part(found[0]), text)


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str | bytes | list | tuple) and _SECRET_KEY.fullmatch(str(key)) is not None


def _home() -> str:
    return os.path.expanduser("~").rstrip("/\\")


def _without_home(text: str) -> str:
    """With `~` for the user's home, whose last part is most often the user's name, and may have spaces."""
    home = _home()
    return re.sub(rf"(?<![\w/.~\\-]){re.escape(home)}(?![^/\\\s'\"`,;:)\]])", "~", text) if home else text


def public_command(words: Sequence[str]) -> str:
    """A command as a card tells it: without `--output_dir`, which says where its author keeps runs."""
    flags = [word.replace("-", "_") for word in words]  # the parser takes dashes for underscores
    pairs = zip(words, flags, ("", *flags))
    kept = [word for word, flag, before in pairs if not flag.startswith("__output_dir") and before != "__output_dir"]
    return public(shlex.join(kept))


def public_names(config: Any) -> Any:
    """A copy of a model's configuration without the places that it was loaded from; the ids of the Hub stay."""
    if isinstance(config, list):
        return [public_names(item) for item in config]
    if not isinstance(config, dict):
        return config
    return {
        key: _without_place(item) if key.endswith("name_or_path") else public_names(item)
        for key, item in config.items()
    }


def _without_place(name: Any) -> Any:
    """A name, or each of a list of names, without the place that it was loaded from."""
    if isinstance(name, list):
        return [_without_place(item) for item in name]
    return last_part(name) if isinstance(name, str) and is_local_path(name) else public_names(name)


def _text(value: Any) -> str:
    """Without what cannot be written: a path may hold bytes that are no text."""
    return str(value).encode("utf-8", "replace").decode()


def is_local_path(name: str) -> bool:
    """Whether `name` is written like a path that means something on this machine only, or is one of a folder here."""
    if re.match(rf"{_BEGIN}|/|\.\.?$", name):
        return True
    return re.search(r"[\\/]", name) is not None and os.path.exists(name)


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
