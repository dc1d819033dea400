"""MkDocs hook: `<!-- settings: kd -->` becomes the table of that method's settings, made from their dataclass."""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, fields
from typing import Any

from hgkd_hf.methods.base.labelled import LabelledMethod
from hgkd_hf.methods.base.method import Method
from hgkd_hf.methods.base.settings import Settings, choices_of, hints_of
from hgkd_hf.methods.registry import METHODS

HEADER = ("| setting | default | what it is |", "| --- | --- | --- |")
MARK = re.compile(r"^<!-- settings: (?P<name>[\w-]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Put the tables where the marks stand."""
    return MARK.sub(lambda mark: settings_table(mark["name"]), markdown)


def settings_table(name: str) -> str:
    """The settings of a method alone; of `labelled`, what methods with labels share; of `all`, what all share."""
    kind = METHODS.get(name) or {"all": Method, "labelled": LabelledMethod}[name]
    shared = next(base for base in (LabelledMethod, Method, Settings) if base is not kind and issubclass(kind, base))
    known = _rows(shared)
    return "\n".join([*HEADER, *(row for row in _rows(kind) if row not in known)])


def _rows(kind: type[Settings]) -> list[str]:
    hints = hints_of(kind)
    return [f"| `{item.name}` | {_default(item)} | {_meaning(item, hints[item.name])} |" for item in fields(kind)]


def _default(item: Field) -> str:
    default = item.default if item.default_factory is MISSING else item.default_factory()
    if default is MISSING:
        return "needed"
    return "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _meaning(item: Field, hint: Any) -> str:
    help = item.metadata["help"]
    choices = ", ".join(f"`{choice}`" for choice in choices_of(hint))
    limits = help.describe_limits()
    parts = (help.replace("|", "\\|"), choices and f"One of {choices}.", limits and f"{limits.capitalize()}.")
    return " ".join(part for part in parts if part)
