"""A ramp from black to white in every kind of image file: it is read as that, or not at all and with the reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hgkd_hf.data import CorruptImageError, decode_image

H, W = 40, 64
RAMP = np.tile(np.linspace(0, 1, W), (H, 1))
GREY = np.rint(RAMP * 255).astype(np.uint8)
RGB = np.dstack([GREY] * 3)
DEEP = np.rint(RAMP * 65535).astype(np.uint16)
PALETTE = Image.fromarray(RGB).quantize(64)
TYPES = {"H": 3, "I": 4, "f": 11}


def saved(image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def png16(*bands: np.ndarray) -> bytes:
    """16 bits a band, of grey, grey and alpha, RGB or RGBA."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[len(bands)]
    rows = b"".join(b"\0" + row.tobytes() for row in np.stack(bands, -1).astype(">u2"))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(*bands: np.ndarray, photometric=None, extra=(), order="<", bits=None, data=None, **tags) -> bytes:
    """An uncompressed TIFF (6.0, section 2) of one strip; `tags` as `tag_340=("H", 0)`."""
    pixels = np.stack(bands, -1)
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    bits = bits or 8 * pixels.itemsize
    data = data or pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    count = len(bands)
    photometric = (2 if count - len(extra) == 3 else 1) if photometric is None else photometric
    entries = {
        256: ("H", W),
        257: ("H", H),
        258: ("H", *[bits] * count),
        259: ("H", 1),
        262: ("H", photometric),
        273: ("I", 8),
        277: ("H", count),
        278: ("H", H),
        279: ("I", len(data)),
        339: ("H", *[kind] * count),
    }
    if extra:
        entries[338] = ("H", *extra)
    entries |= {int(name.removeprefix("tag_")): value for name, value in tags.items()}
    start = 8 + len(data) + len(data) % 2
    behind, place = b"", start + 2 + 12 * len(entries) + 4
    directory = struct.pack(f"{order}H", len(entries))
    for tag, (code, *values) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        directory += struct.pack(f"{order}HHI", tag, TYPES[code], len(values))
        if len(packed) > 4:
            directory += struct.pack(f"{order}I", place + len(behind))
            behind += packed
        else:
            directory += packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return head + data.ljust(start - 8, b"\0") + directory + bytes(4) + behind


def of(greatest: float, kind: str) -> np.ndarray:
    return np.rint(RAMP * greatest).astype(kind) if kind[0] != "f" else (RAMP * greatest).astype(kind)


def twelve_bits() -> bytes:
    """Two values in three bytes, as TIFF packs 12 bits."""
    values = of(4095, "u2").reshape(-1, 2).astype(np.uint32)
    packed = values[:, 0] << 12 | values[:, 1]
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1).astype(np.uint8).tobytes()


def pnm(magic: bytes, greatest: int, pixels: np.ndarray) -> bytes:
    return magic + f"\n{W} {H}\n{greatest}\n".encode() + pixels.astype(">u2" if greatest > 255 else "u1").tobytes()


OPAQUE8, OPAQUE16 = np.full_like(GREY, 255), np.full_like(DEEP, 65535)
FULL = of(2**32 - 1, "u4")
KINDS = {
    "PNG grey": saved(GREY, "PNG"),
    "PNG RGB": saved(RGB, "PNG"),
    "PNG grey, alpha": saved(Image.fromarray(np.dstack([GREY, OPAQUE8]), "LA"), "PNG"),
    "PNG 16 bits grey": png16(DEEP),
    "PNG 16 bits grey, alpha": png16(DEEP, OPAQUE16),
    "PNG 16 bits RGB": png16(DEEP, DEEP, DEEP),
    "PNG 16 bits RGBA": png16(DEEP, DEEP, DEEP, OPAQUE16),
    "PNG palette": saved(PALETTE, "PNG"),
    "PNG palette, transparent": saved(PALETTE, "PNG", transparency=0),
    "PNG 4 bits": saved(Image.fromarray(RGB).quantize(16, dither=Image.Dither.NONE), "PNG", bits=4),
    "JPEG RGB": saved(RGB, "JPEG", quality=95),
    "JPEG grey": saved(GREY, "JPEG", quality=95),
    "JPEG CMYK": saved(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95),
    "GIF animated": saved(PALETTE, "GIF", save_all=True, append_images=[PALETTE.transpose(0)]),
    "WebP alpha": saved(np.dstack([RGB, OPAQUE8]), "WEBP", lossless=True),
    "AVIF": saved(RGB, "AVIF"),
    "JPEG 2000": saved(RGB, "JPEG2000"),
    "JPEG 2000 16 bits": saved(DEEP, "JPEG2000"),
    "BMP": saved(RGB, "BMP"),
    "TGA": saved(RGB, "TGA"),
    "PPM": saved(RGB, "PPM"),
    "PGM 16 bits": pnm(b"P5", 65535, DEEP),
    "PGM of 4095": pnm(b"P5", 4095, of(4095, "u2")),
    "PPM of 4095": pnm(b"P6", 4095, np.dstack([of(4095, "u2")] * 3)),
    "TIFF grey": tiff(GREY),
    "TIFF grey, white is zero": tiff(255 - GREY, photometric=0),
    "TIFF grey, big endian": tiff(DEEP, order=">"),
    "TIFF RGB": tiff(*[GREY] * 3),
    "TIFF palette": saved(PALETTE, "TIFF"),
    "TIFF CMYK": saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"),
    "TIFF LZW": saved(RGB, "TIFF", compression="tiff_lzw"),
    "TIFF Lab": tiff(GREY, np.zeros_like(GREY), np.zeros_like(GREY), photometric=8),  # its L is close to sRGB's greys
    "TIFF 16 bits": tiff(DEEP),
    "TIFF 16 bits, white is zero": tiff(65535 - DEEP, photometric=0),
    "TIFF 16 bits RGB": tiff(*[DEEP] * 3),
    "TIFF 16 bits signed": tiff(of(32767, "i2")),
    "TIFF 8 bits signed": tiff(of(127, "i1")),
    "TIFF 12 bits": tiff(DEEP, bits=12, data=twelve_bits()),
    "TIFF 12 of 16 bits that says so": tiff(of(4095, "u2"), tag_340=("H", 0), tag_341=("H", 4095)),
    "TIFF 14 of 16 bits, MaxSampleValue": tiff(of(16383, "u2"), tag_281=("H", 16383)),
    "TIFF 16 bits from 1000": tiff(of(64535, "u2") + np.uint16(1000), tag_340=("H", 1000), tag_341=("H", 65535)),
    "TIFF 32 bits unsigned": tiff(FULL),
    "TIFF 32 bits signed": tiff(of(2**31 - 1, "i4")),
    "TIFF float that says so": tiff(of(1, "f4"), tag_340=("f", 0.0), tag_341=("f", 1.0)),
    "TIFF float from below 0": tiff(of(2, "f4") - 1, tag_340=("f", -1.0), tag_341=("f", 1.0)),
    "TIFF float, white is zero": tiff(1 - of(1, "f4"), photometric=0, tag_340=("f", 0.0), tag_341=("f", 1.0)),
    "TIFF grey and a band of unspecified meaning": tiff(GREY, 255 - GREY, extra=(0,)),
    "TIFF near infrared as fourth band": tiff(*[GREY] * 4, extra=(0,)),
    "TIFF 5 bands": tiff(*[GREY] * 5, extra=(0, 0)),
    "TIFF opaque alpha": tiff(*[GREY] * 3, OPAQUE8, extra=(2,)),
    "TIFF opaque premultiplied alpha": tiff(*[GREY] * 3, OPAQUE8, extra=(1,)),
}
UNKNOWN_RANGE, UNUSED_BITS, FORMAT = "whose range is unknown", "does not state how many bits they use", "its format is"
REFUSED = {
    "PNG 12 of 16 bits": (png16(of(4095, "u2")), f"its pixels end at 4095 of 65535, and it {UNUSED_BITS}"),
    "PNG 10 of 16 bits": (png16(of(1023, "u2")), UNUSED_BITS),
    "PNG 14 of 16 bits": (png16(of(16383, "u2")), UNUSED_BITS),
    "PNG 12 of 16 bits RGB": (png16(*[of(4095, "u2")] * 3), UNUSED_BITS),
    "PNG 12 of 16 bits with alpha": (png16(of(4095, "u2"), OPAQUE16), UNUSED_BITS),
    "TIFF 12 of 16 bits": (tiff(of(4095, "u2")), UNUSED_BITS),
    "TIFF 12 of 16 bits RGB": (tiff(*[of(4095, "u2")] * 3), UNUSED_BITS),
    "TIFF 12 of 16 bits RGB that says so": (
        tiff(*[of(4095, "u2")] * 3, tag_340=("H", 0, 0, 0), tag_341=("H", *[4095] * 3)),
        "colours of 16 bits from 0 to 4095, which are not read",
    ),
    "TIFF 12 of 16 bits signed": (tiff(of(4095, "i2")), UNUSED_BITS),
    "TIFF 8 of 32 bits signed": (tiff(of(255, "i4")), UNUSED_BITS),
    "TIFF 16 of 32 bits unsigned": (tiff(of(65535, "u4")), UNUSED_BITS),
    "TIFF 16 bits below 0": (tiff(of(65535, "i4").astype("i2") - 99), "negative pixels, and does not state what is b"),
    "TIFF 8 bits below 0": (tiff(of(255, "i2").astype("i1")), "negative pixels"),
    "TIFF float": (tiff(of(1, "f4")), f"floating-point pixels, {UNKNOWN_RANGE}"),
    "TIFF float of 255": (tiff(of(255, "f4")), UNKNOWN_RANGE),
    "TIFF float, not finite": (
        tiff(np.where(RAMP > 0.5, np.nan, RAMP).astype("f4"), tag_340=("f", 0.0), tag_341=("f", 1.0)),
        "pixels that are not finite",
    ),
    "TIFF without a range": (tiff(DEEP, tag_340=("H", 7), tag_341=("H", 7)), UNKNOWN_RANGE),
    "TIFF 13 bands": (tiff(*[DEEP] * 13, photometric=1, extra=(0,) * 12), FORMAT),
    "PFM": (b"Pf\n%d %d\n-1.0\n" % (W, H) + of(1, "f4").tobytes(), UNKNOWN_RANGE),
    "JPEG cut off": (saved(RGB, "JPEG")[:-60], "image file is truncated"),
    "PNG cut off": (saved(RGB, "PNG")[:-60], "row 0"),
    "empty": (b"", FORMAT),
    "HTML": (b"<html>404</html>", FORMAT),
}


@pytest.mark.parametrize("kind", KINDS)
def test_is_read_as_the_ramp(kind):
    pixels = np.asarray(decode_image({"bytes": KINDS[kind], "path": None}, name="row 0")).astype(int)
    assert pixels.shape == (H, W, 3)
    exact = not any(word in kind for word in ("JPEG", "AVIF", "palette", "4 bits", "GIF", "Lab"))
    first = 5 if "transparent" in kind else 0  # the darkest entry of the palette lies on white
    assert np.abs(pixels - RGB)[:, first:].max() <= (1 if exact else 14)


@pytest.mark.parametrize("kind", REFUSED)
def test_is_refused_with_the_reason(kind):
    data, match = REFUSED[kind]
    with pytest.raises(CorruptImageError, match=match) as caught:
        decode_image({"bytes": data, "path": "a.file"}, name="row 0")
    assert str(caught.value).startswith("row 0 (a.file) cannot be decoded: ")
    assert "\n" not in str(caught.value)


def test_alpha_of_a_tiff_lies_on_white():
    alpha = 255 - GREY
    pixels = np.asarray(decode_image(tiff(*[GREY] * 3, alpha, extra=(2,)))).astype(float)
    on_white = (GREY * (alpha / 255.0) + 255 - alpha)[..., None]
    assert np.abs(pixels - on_white).max() <= 1


def test_a_transparent_value_of_deep_grey_lies_on_white():
    buffer = io.BytesIO()
    Image.fromarray(DEEP).save(buffer, "PNG", transparency=0)
    pixels = np.asarray(decode_image(buffer.getvalue()))
    assert (pixels[:, 0] == 255).all()
    assert (pixels[:, 1:] == RGB[:, 1:]).all()


def test_black_images_are_black():
    for data in (png16(np.zeros_like(DEEP)), tiff(np.zeros((H, W), "i4")), png16(*[np.zeros_like(DEEP)] * 3)):
        assert not np.asarray(decode_image(data)).any()
