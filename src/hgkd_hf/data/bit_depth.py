"""Pixels of more than 8 bits as 8 bits: by the range that their file states, or not at all.

Pillow keeps grey pixels of up to 32 bits as they are stored (mode `I`, `I;16` or `F`), and of colours the upper 8 of
16 bits. What black and white are is only known from the file: TIFF 6.0 has tags for it (sections 8 and 19).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE_VALUE, _SAMPLE_FORMAT, _S_MIN, _S_MAX = 258, 262, 281, 339, 340, 341
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_WHITE_IS_ZERO = 0
# These scale what they read to 16 bits, by the greatest value or the precision that the file states.
_SCALED_FORMATS = ("PPM", "JPEG2000")
# Sensors of 10, 12 and 14 bits fill 16 of them in part. An image that stays below a quarter of the range is more often
# one of theirs than a dark one.
_UNUSED_SHARE = 1 / 4


@dataclass(frozen=True)
class SampleRange:
    """What the values of an image's pixels mean.

    Attributes:
        low, high: black and white; the other way round if `inverted`.
        is_stated: whether the file says that they are used in full; else this is what its type can hold.
        inverted: whether `low` is white.
        dtype: to which the pixels that Pillow gives are to be viewed, if it has no mode for theirs.
    """

    low: float
    high: float
    is_stated: bool = False
    inverted: bool = False
    dtype: type | None = None


def stated_range(image: Image.Image) -> SampleRange | None:
    """The range of an image of more than 8 bits or of signed ones, as it was opened; None for all others.

    Raises:
        ValueError: it is not known.
    """
    if image.format == "TIFF":
        return _stated_by_tiff(image)
    deep = image.mode == "I" or image.mode.startswith("I;16")
    if deep and image.format in _SCALED_FORMATS:
        return SampleRange(0, 65535, is_stated=True)
    # Pillow's name for the stored layout of pixels, such as RGB;16B
    stored = str(image.tile[0].args) if image.format in ("PNG", "SGI") and image.tile else ""
    if ";16" in stored or (deep and image.format in ("PNG", None)):
        return SampleRange(0, 65535)
    if deep or image.mode == "F":
        kind = "floating-point" if image.mode == "F" else "integer"
        raise ValueError(f"it holds {kind} pixels, whose range is unknown")
    return None


def _stated_by_tiff(image: Image.Image) -> SampleRange | None:
    tags = image.tag_v2

    def first(tag: int, default: float) -> float:
        value = tags.get(tag, default)
        return value[0] if isinstance(value, tuple) else value

    bits, kind = first(_BITS_PER_SAMPLE, 1), first(_SAMPLE_FORMAT, _UNSIGNED)
    if bits <= 8 and kind != _SIGNED:
        return None
    low, high = 0, math.inf if kind == _FLOAT else 2 ** (bits - (kind == _SIGNED)) - 1
    is_stated = kind == _UNSIGNED and bits not in (16, 32)  # 12 bits that are stored as such
    if _S_MAX in tags:
        low, high, is_stated = first(_S_MIN, 0), first(_S_MAX, 0), True
    elif kind != _FLOAT and math.log2(first(_MAX_SAMPLE_VALUE, 0) + 1) in range(9, bits):  # else but a statistic
        high, is_stated = first(_MAX_SAMPLE_VALUE, 0), True
    if not high > low or (kind == _FLOAT and not is_stated):
        kind = "floating-point" if kind == _FLOAT else "integer"
        raise ValueError(f"it holds {kind} pixels, whose range is unknown")
    dtype = {(32, _UNSIGNED): np.uint32, (8, _SIGNED): np.int8}.get((bits, kind))
    return SampleRange(low, high, is_stated, first(_PHOTOMETRIC, 1) == _WHITE_IS_ZERO, dtype)


def to_eight_bits(image: Image.Image, samples: SampleRange) -> Image.Image:
    """A decoded image scaled from its range to 0 ... 255; as it is where Pillow has scaled it.

    Raises:
        ValueError: its values do not go with the range, which is then not known.
    """
    if image.mode[0] not in "IF" and samples.dtype is None:
        if samples.high != 65535:
            raise ValueError(
                f"it holds colours of 16 bits from {samples.low:g} to {samples.high:g}, which are not read"
            )
        if image.mode != "CMYK" and not samples.is_stated:
            bands = image.getbands()
            extrema = [image.getchannel(band).getextrema()[1] for band in bands if band not in "Aa"]
            _check_is_used(257 * max(extrema), samples)
        return image
    levels = np.asarray(image)
    levels = levels if samples.dtype is None else levels.view(samples.dtype)
    if not np.isfinite(levels).all():
        raise ValueError("it holds pixels that are not finite")
    if not samples.is_stated:
        if levels.min() < samples.low:
            raise ValueError("it holds negative pixels, and does not state what is black (SMinSampleValue)")
        _check_is_used(levels.max(), samples)
    scaled = (levels.astype(np.float32) - samples.low) * (255 / (samples.high - samples.low))
    scaled = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    scaled = 255 - scaled if samples.inverted else scaled
    if "transparency" in image.info:
        scaled[levels == image.info["transparency"]] = 255  # on white
    return Image.fromarray(scaled)


def _check_is_used(greatest: float, samples: SampleRange) -> None:
    if 0 < greatest < _UNUSED_SHARE * samples.high:
        raise ValueError(
            f"its pixels end at {greatest:g} of {samples.high:g}, and it does not state how many bits they use: scale "
            "them to all bits (or in a TIFF set SMaxSampleValue)"
        )
