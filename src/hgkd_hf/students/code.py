"""Networks that a function of this machine builds: its import path is data, and running it is asked for by name.

A config that was downloaded can name any function, so that none is imported because a config says so: only those run
that the user has named, on the command line (`--student`, `--allow_code`) or by `allow_code`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any

from torch import nn

from .import_path import is_import_path


class NetworkError(ValueError):
    """A function or network of the user's that cannot be used as a student; the message is one sentence."""


_allowed: dict[str, Callable[..., nn.Module]] = {}


def allow_code(factory: str | Callable[..., nn.Module]) -> str:
    """Let configs of this process name a function (or a class) that builds a network.

    Args:
        factory: its import path, `package.module:function`, which is imported now; or the function itself.

    Returns:
        Its import path, for `ModuleBackboneConfig`.

    Raises:
        NetworkError: it is no import path, or nothing that can be called is there.
    """
    if callable(factory):
        path = f"{factory.__module__}:{factory.__qualname__}"
        _allowed[path] = factory
        return path
    if not is_import_path(factory):
        raise NetworkError(
            f"{factory!r} is no import path: give package.module:function, e.g. torchvision.models:resnet18."
        )
    try:
        found = pkgutil.resolve_name(factory)
    except (ImportError, AttributeError) as error:
        raise NetworkError(f"{factory!r} cannot be imported: {error}.") from error
    if not callable(found):
        raise NetworkError(f"{factory!r} is a {type(found).__name__}, but must build a network when it is called.")
    _allowed[factory] = found
    return factory


def build_network(factory: str, arguments: dict[str, Any]) -> nn.Module:
    """What an allowed function builds.

    Raises:
        NetworkError: nobody has allowed the function, it fails, or what it gives is no `nn.Module`.
    """
    if factory not in _allowed:
        raise NetworkError(
            f"the student is built by {factory!r}, which is code: if you trust it, name it on the command line "
            f"(--allow_code {factory}), or call hgkd_hf.allow_code({factory!r}) before."
        )
    try:
        network = _allowed[factory](**arguments)
    except Exception as error:  # it is not our code: whatever it raises
        raise NetworkError(f"{factory!r} failed with the arguments {arguments}: {error}.") from error
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{factory!r} gave a {type(network).__name__}, but must give an nn.Module.")
    return network
