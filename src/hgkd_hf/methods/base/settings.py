"""A setting stands in one place: its name, default, help and limits make config field, flag, recipe key and docs."""

from __future__ import annotations

import argparse
import copy
import inspect
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from numbers import Real
from operator import ge, gt, le, lt
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

_LIMITS = {
    "minimum": (ge, "at least"),
    "above": (gt, "above"),
    "maximum": (le, "at most"),
    "below": (lt, "below"),
}


class SettingHelp(str):
    """A setting's help text, which carries the rest along: `HfArgumentParser` hands a field's metadata to argparse."""

    limits: dict[str, float]
    before: Any

    def describe_limits(self) -> str:
        """As in `at least 0 and below 1`; empty without limits."""
        return " and ".join(f"{_LIMITS[kind][1]} {limit:g}" for kind, limit in self.limits.items())


class OneOrSeveral(argparse.Action):
    """Of a flag with several values: one alone is kept as it is, not as a list of one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: list, option: str | None = None
    ) -> None:
        """Store what was given."""
        setattr(namespace, self.dest, values if len(values) > 1 else values[0])


def setting(
    default: Any = MISSING, help: str = "", *, before: Any = MISSING, several: bool = False, **limits: float
) -> Any:
    """A field of a settings dataclass; its type hint decides how it is parsed, a `Literal` which values there are.

    Args:
        default: its default, a list for a setting with several values; none: the setting must be given.
        help: one sentence, of the command line and the docs.
        before: what runs and configs did that were written before the setting existed, if not its default.
        several: of a setting with one value: whether it may be a list of more (type hint `list[str] | str | None`).
        limits: `minimum` or `above`, and `maximum` or `below`: of the number, or of each number of a list.
    """
    text = SettingHelp(help)
    text.limits, text.before = limits, before
    metadata = {"help": text} | ({"nargs": "+", "action": OneOrSeveral} if several else {})
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def as_list(value: Any) -> list:
    """The values of a setting that may have several; none of None."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


@dataclass
class Settings:
    """Base of all that has settings: of methods, of trainings, of commands."""

    @classmethod
    def before(cls) -> dict[str, Any]:
        """What runs and configs did that were written before a setting existed, where it is not its default."""
        helps = {item.name: item.metadata.get("help") for item in fields(cls)}
        known = {name: help.before for name, help in helps.items() if isinstance(help, SettingHelp)}
        return {name: value for name, value in known.items() if value is not MISSING}

    def settle(self) -> None:
        """Give settings that are None, as their default depends on others, their value; called before `check`."""

    def settled_default(self, name: str) -> Any:
        """What a setting whose default is None comes to beside the other settings."""
        unset = copy.copy(self)
        setattr(unset, name, None)
        unset.settle()
        return getattr(unset, name)

    def check(self) -> None:
        """Raise `ValueError` for a value out of its limits; methods add what does not go together."""
        hints = hints_of(type(self))
        for item in fields(self):
            help = item.metadata.get("help")
            if isinstance(help, SettingHelp):
                _check(item.name, getattr(self, item.name), choices_of(hints[item.name]), help)


@dataclass
class MethodSettings(Settings):
    """Base of the settings of a method alone, of its config, of the command that runs it.

    A method's settings are one dataclass; its config (`KDConfig(KDSettings, DistillerConfig)`) and its command
    (`KDMethod(KDSettings, Method)`) take the fields, and `check`, from it.
    """

    @property
    def title(self) -> str:
        """The method's name on cards and in tables."""
        raise NotImplementedError

    @property
    def needs_teacher(self) -> bool:
        """Whether these settings learn from a teacher."""
        return True


@dataclass
class LabelledSettings(MethodSettings):
    """Base of the settings of a method that learns from labels."""

    @property
    def single_labels(self) -> str:
        """The settings for which every image must have one class, not a mixture; empty if there are none."""
        return ""


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, alone or optional; none for other types."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((get_args(part) for part in parts if get_origin(part) is Literal), ())


@lru_cache
def hints_of(kind: type) -> dict[str, Any]:
    """The type hints of a class and its bases that have settings (transformers' own need not be evaluated)."""
    hints: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, Settings):
            hints |= inspect.get_annotations(base, eval_str=True)
    return hints


def _check(name: str, value: Any, choices: tuple[Any, ...], help: SettingHelp) -> None:
    if value is None:
        return
    if choices and value not in choices:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(map(str, choices))} (--{name}).")
    for number in value if isinstance(value, list | tuple) else (value,):
        # NaN, which no comparison holds for, is refused.
        fits = isinstance(number, Real) and all(_LIMITS[kind][0](number, limit) for kind, limit in help.limits.items())
        if help.limits and not fits:
            raise ValueError(f"{name} is {value!r}, but it must be {help.describe_limits()} (--{name}).")
