"""Turn the undecoded images of a dataset into RGB, whatever they were stored as."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from hgkd_hf.data.access import ANYWHERE, ImageAccess
from hgkd_hf.data.bit_depth import SampleRange, stated_range, to_eight_bits
from hgkd_hf.data.errors import reason

# 400 MB once decoded to RGB; larger files are more often bombs or scanned maps than samples.
MAX_PIXELS = 2**27


class CorruptImageError(ValueError):
    """An image that cannot be decoded; the message is one sentence that names it and the reason."""


def decode_image(
    value: dict | bytes | Image.Image | None,
    *,
    min_side: int | None = None,
    name: str | None = None,
    access: ImageAccess = ANYWHERE,
) -> Image.Image:
    """Decode an image to RGB: upright, transparency on white, scaled to 8 bits by its range, first frame only.

    Args:
        value: `{"bytes", "path"}` as an undecoded `datasets` column gives it (the bytes win; a path may be local or
            any URL that fsspec opens), the bytes of a file, or a PIL image.
        min_side: sides (pixels) that the caller needs at least. A JPEG at least twice as large is then decoded at
            1/2, 1/4 or 1/8 of its size, which is several times faster.
        name: what an error calls the image, e.g. `row 12`; the path is added.
        access: where paths and URLs may lie.

    Raises:
        CorruptImageError: there is no image, it is broken, of an unknown format, lies where it may not, has more
            than `MAX_PIXELS`, or more than 8 bits whose range is not known (see `stated_range`).
        OSError: a remote path cannot be read. A network failure says nothing about the image.
    """
    name = _name(value, name)
    with _as_corrupt(name):
        image = _open_within_bound(value, access)
        if min_side is not None and image.format in ("JPEG", "MPO"):
            image.draft(None, (min_side, min_side))
        samples = stated_range(image)  # before its tags are gone
        image.load()
        return _to_rgb(_upright(image), samples)


def open_image(
    value: dict | bytes | Image.Image | None, *, name: str | None = None, access: ImageAccess = ANYWHERE
) -> Image.Image:
    """Open an image without decoding its pixels: its format, mode, stored size and EXIF data are known.

    Args:
        value, name, access: as for `decode_image`.

    Raises:
        CorruptImageError: there is no image, its header is broken, or it has more than `MAX_PIXELS`.
        OSError: a remote path cannot be read.
    """
    with _as_corrupt(_name(value, name)):
        return _open_within_bound(value, access)


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 (upright) to 8; unreadable EXIF data, common in the wild, is 1.

    That of a TIFF is 1: Pillow turns it while decoding, and gives its upright size before.
    """
    if image.format == "TIFF":
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return 1
    return orientation if orientation in range(1, 9) else 1


def _name(value: dict | bytes | Image.Image | None, name: str | None) -> str:
    path = value.get("path") if isinstance(value, dict) else None
    return f"{name} ({path})" if name and path else name or path or "an image"


@contextmanager
def _as_corrupt(name: str) -> Iterator[None]:
    """Whatever Pillow raises for a broken file becomes one sentence about `name`."""
    try:
        yield
    except _RemoteError as error:
        raise error.__cause__ from None
    except UnidentifiedImageError as error:
        raise CorruptImageError(f"{name} cannot be decoded: its format is not known.") from error
    except Exception as error:  # broken files make Pillow's readers fail in every way, from SyntaxError to KeyError
        raise CorruptImageError(f"{name} cannot be decoded: {reason(error)}.") from error


def _open_within_bound(value: dict | bytes | Image.Image | None, access: ImageAccess) -> Image.Image:
    image = value if isinstance(value, Image.Image) else Image.open(_open(value, access))
    if image.width * image.height > MAX_PIXELS:
        raise CorruptImageError(f"its {image.width}x{image.height} pixels are more than {MAX_PIXELS}")
    return image


class _RemoteError(Exception):
    """Carries a failed download past the net that takes every other error for a broken image."""


def _open(value: dict | bytes | None, access: ImageAccess) -> io.BytesIO | Path:
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is not None:
        return io.BytesIO(data)
    if path is None:
        raise CorruptImageError("the row holds no image")
    path = access.locate(path)
    if "://" not in path:
        return Path(path)
    try:
        with fsspec.open(path, "rb") as file:
            return io.BytesIO(file.read())
    except FileNotFoundError:
        raise
    except Exception as error:
        raise _RemoteError from error


def _upright(image: Image.Image) -> Image.Image:
    return image if exif_orientation(image) == 1 else ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image, samples: SampleRange | None) -> Image.Image:
    if samples is not None:
        image = to_eight_bits(image, samples)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
