"""Which files and URLs the rows of a dataset may name: a table that was downloaded must not choose what is opened."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class ImageAccess:
    """Where the images lie that rows name by a path or URL, rather than hold as bytes.

    Attributes:
        folder: the dataset's own folder, to which relative paths belong; None: it has none.
        roots: folders and `hf://` prefixes below which files may be opened; None: every file, since this package
            listed the files itself.
        anywhere: open all files and URLs.
    """

    folder: str | None = None
    roots: tuple[str, ...] | None = ()
    anywhere: bool = False

    def locate(self, path: str) -> str:
        """The path or URL to open, absolute.

        Raises:
            PermissionError: it lies elsewhere.
        """
        if self.anywhere or (self.roots is None and "://" not in path):
            return path if "://" in path or self.folder is None else os.path.join(self.folder, path)
        *archives, place = path.split("::")  # zip://a.png::file.zip is a file within a file
        if all(archive.startswith("zip://") for archive in archives):
            if "://" not in place:
                place = os.path.join(self.folder or "", place)
            if self._holds(place):
                return "::".join([*archives, place])
        raise PermissionError(
            f"it is named as {path!r}, outside of the dataset (--allow_remote_images opens such images)"
        )

    def file(self, path: str | None) -> str | None:
        """The local file that a row names; None if it names none, or one that is not there or lies elsewhere."""
        try:
            place = self.locate(path or "")
        except PermissionError:
            return None
        return place if os.path.isfile(place) else None

    def _holds(self, place: str) -> bool:
        if "://" in place:
            prefixes = tuple(root + separator for root in self.roots or () if "://" in root for separator in "/@")
            return place.startswith(prefixes) and ".." not in place.split("/")
        folders = tuple(os.path.realpath(root) + os.sep for root in self.roots or () if "://" not in root)
        return os.path.realpath(place).startswith(folders)


ANYWHERE, NOWHERE = ImageAccess(anywhere=True), ImageAccess()
