"""Which files and URLs the rows of a dataset may name: a table that was downloaded must not choose what is opened."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hgkd_hf.data.errors import STANDARD_FLAGS, Flags


@dataclass(frozen=True)
class ImageAccess:
    """Where the images lie that rows name by a path or URL, rather than hold as bytes.

    Attributes:
        folder: the dataset's own folder, to which relative paths belong; None: it has none.
        roots: folders and `hf://` prefixes below which files may be opened; None: every file, since this package
            listed the files itself.
        anywhere: open all files and URLs.
        flags: what errors call the arguments.
    """

    folder: str | None = None
    roots: tuple[str, ...] | None = ()
    anywhere: bool = False
    flags: Flags = STANDARD_FLAGS

    def locate(self, path: str) -> str:
        """The path or URL to open, absolute.

        Raises:
            PermissionError: it lies elsewhere.
        """
        place = path.split("::")[-1]  # zip://a.png::file.zip is a file within a file
        if self.anywhere or ("://" not in path and self.roots is None):
            return path if "://" in path or self.folder is None else os.path.join(self.folder, path)
        if "://" in place:
            if any(place.startswith((f"{root}/", f"{root}@")) for root in self.roots or () if "://" in root):
                return path
        else:
            absolute = os.path.join(self.folder or "", place)
            inside = (os.path.realpath(root) for root in self.roots or () if "://" not in root)
            if any(os.path.realpath(absolute).startswith(root + os.sep) for root in inside):
                return path.removesuffix(place) + absolute
        raise PermissionError(
            f"it is named as {path!r}, outside of the dataset ({self.flags.allow_remote_images} opens such images)"
        )


ANYWHERE, NOWHERE = ImageAccess(anywhere=True), ImageAccess()
