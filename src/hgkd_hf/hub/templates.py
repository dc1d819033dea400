"""Templates of cards: Jinja whose values are text, not markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from . import readme


class Markdown(str):
    """Text that is Markdown on purpose: it is not escaped."""


def render(template: Path, **values: Any) -> str:
    """Fill in a template; what it prints is escaped, but through its filters `code`, `block`, `yaml`, `markdown`."""
    environment = jinja2.Environment(
        finalize=lambda value: value if isinstance(value, Markdown) else readme.escape(value),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "code": lambda text: Markdown(readme.code(text)),
        "block": lambda text, language="": Markdown(readme.block(text, language)),
        "yaml": readme.to_yaml,
        "markdown": Markdown,
    }
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)
