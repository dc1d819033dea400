"""YAML of people and repositories: plain values, each key once, and one kind of error."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Refuses what YAML forbids and PyYAML takes: a mapping that gives two values for one key."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    message = f"the key {key.value!r} stands twice"
                    raise yaml.composer.ComposerError(None, None, message, key.start_mark)
                seen.add((key.tag, key.value))
        return node


def load_yaml(text: str) -> Any:
    """The value that a text of YAML holds; tags give no other than the plain kinds.

    Raises:
        ValueError: it is not YAML, a key of a mapping stands twice, or a tag does not fit its value.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    # PyYAML's own conversions fail in many ways: `!!int ""` by an IndexError, `!!bool x` by a KeyError.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(" ".join(str(error).split()) or "a tag does not fit its value") from error
