"""The form of an import path, which the command line knows before torch is imported."""

import re

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def is_import_path(text: str) -> bool:
    """Whether `text` has the form `package.module:function`."""
    return _PATH.fullmatch(text) is not None
