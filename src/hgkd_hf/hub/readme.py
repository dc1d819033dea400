"""A README that is written by a program and edited by people: Markdown-safe text, and merging without overwriting."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import yaml

from ..checkpoints.yaml_text import load_yaml

FILE = "README.md"
BEGIN = "<!-- hgkd_hf: begin. What is between these two lines is rewritten; write above or below them. -->"
END = "<!-- hgkd_hf: end -->"
# From a line that begins our part to the first line that ends it. Without its end, a part is text like any other, so
# that nothing below it is lost.
_MARKED = re.compile(
    r"^<!-- hgkd_hf: begin\b(?:(?!^<!-- hgkd_hf: begin\b).)*?^<!-- hgkd_hf: end -->", re.DOTALL | re.MULTILINE
)
_FRONT_MATTER = re.compile(
    r"\A\s*---[ \t]*\r?\n(?P<yaml>.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)


# Control characters but tabs and ends of lines, and those that turn the direction in which text is shown.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def _line(text: Any) -> str:
    return _UNSEEN.sub("", " ".join(str(text).split()))


def escape(text: Any) -> str:
    """Text for a line or table cell of Markdown, in which nothing is markup, neither Markdown's nor HTML's."""
    line = _line(text)
    line = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(line, quote=False))
    return re.sub(r"^(\d+(?=[.)]\s)|(?=[-+=#]))", r"\1\\", line)


def code(text: Any) -> str:
    """Text as inline code (not for tables, where a pipe would end the cell)."""
    line = _line(text)
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}" if line else ""


def block(text: str, language: str = "") -> str:
    """Text as a fenced block that it cannot end."""
    text = _UNSEEN.sub("", text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def read_local(folder: str | Path) -> str | None:
    """The README of a folder, None without one; see `read`."""
    path = Path(folder, FILE)
    return read(path, f"in {folder}") if path.is_file() else None


def read(path: Path, whose: str) -> str:
    """The text of a README, which others may have written on another system.

    Args:
        path: of the file.
        whose: of what, for the message.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"the README {whose} is not UTF-8 text: save it as UTF-8.") from None


def to_yaml(data: dict[str, Any]) -> str:
    """Plain data as YAML, in its order."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)


def compose(metadata: dict[str, Any], body: str) -> str:
    """A README of metadata and a body that is marked as written by this package."""
    body = body.strip().replace("<!-- hgkd_hf:", "<!-- hgkd_hf :")  # a setting may look like our marks
    return f"---\n{to_yaml(metadata)}---\n{BEGIN}\n{body}\n{END}\n"


def split(readme: str) -> tuple[dict[str, Any], str]:
    """The metadata and the body of a README.

    Raises:
        ValueError: the metadata are no YAML mapping.
    """
    found = _FRONT_MATTER.match(readme)
    if not found:
        return {}, readme
    try:
        metadata = load_yaml(found["yaml"]) or {}
    except ValueError as error:
        raise ValueError(f"the metadata of the README is not valid YAML: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError("the metadata of the README is not a YAML mapping.")
    return metadata, readme[found.end() :]


def merge(ours: str, existing: str | None) -> str:
    """`ours` (from `compose`) put into a README that may have been edited.

    Our metadata keys are renewed, tags are united, other keys stay. Our part of the body is renewed in its place, or
    put below a body that has none; everything else stays as it is.

    Raises:
        ValueError: the existing metadata are no YAML mapping.
    """
    if existing is None:
        return ours
    metadata, body = split(ours)
    their_metadata, their_body = split(existing)
    tags = [*metadata.get("tags", []), *_strings(their_metadata.get("tags"))]
    merged = {**metadata, "tags": list(dict.fromkeys(tags))}
    if "license" in metadata:  # another one's name and link go with it
        their_metadata = {k: v for k, v in their_metadata.items() if k not in ("license_name", "license_link")}
    merged |= {key: value for key, value in their_metadata.items() if key not in merged}
    if _MARKED.search(their_body):
        text = _MARKED.sub(lambda _: body.strip(), their_body, count=1)
    else:
        text = f"{their_body.rstrip()}\n\n{body.strip()}\n" if their_body.strip() else body
    return f"---\n{to_yaml(merged)}---\n{text}"


def outside(readme: str) -> str:
    """What people wrote: the README without our part of its body, and without its metadata."""
    return _MARKED.sub("", split(readme)[1], count=1).strip()


def _strings(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value or []]
