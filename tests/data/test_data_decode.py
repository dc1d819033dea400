"""Each way to store an image becomes the right RGB, and each broken one a sentence."""

import io
import struct
import zlib

import fsspec
import numpy as np
import pytest
from PIL import Image

from hgkd_hf.data import CorruptImageError, decode_image
from hgkd_hf.data import decode as decode_module
from hgkd_hf.data.decode import exif_orientation, open_image


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def rgb(value, **options) -> np.ndarray:
    image = decode_image(value, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_bytes_dict_path_and_pil_agree(tmp_path):
    data = encode(Image.fromarray(PIXELS))
    (tmp_path / "a.png").write_bytes(data)
    for value in (
        data,
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        {"bytes": data, "path": "gone.png"},
        Image.fromarray(PIXELS),
    ):
        assert np.array_equal(rgb(value), PIXELS)


def test_url_is_read_through_fsspec():
    with fsspec.open("memory://pictures/a.png", "wb") as file:
        file.write(encode(Image.fromarray(PIXELS)))
    assert np.array_equal(rgb({"bytes": None, "path": "memory://pictures/a.png"}), PIXELS)
    with pytest.raises(CorruptImageError, match=r"memory://pictures/gone\.png"):
        decode_image({"bytes": None, "path": "memory://pictures/gone.png"})


def test_failed_download_is_no_corrupt_image(monkeypatch):
    def fail(*args, **kwargs):
        raise TimeoutError("no answer")

    monkeypatch.setattr(fsspec, "open", fail)
    with pytest.raises(TimeoutError, match="no answer"):
        decode_image({"bytes": None, "path": "https://example.org/a.png"})


def test_grey_and_bilevel():
    grey = PIXELS[..., 0]
    assert np.array_equal(rgb(encode(Image.fromarray(grey))), np.repeat(grey[..., None], 3, 2))
    assert np.unique(rgb(encode(Image.fromarray(grey > 128)))).tolist() == [0, 255]


def test_cmyk():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # full magenta and yellow
    assert rgb(encode(cmyk, "TIFF"))[0, 0].tolist() == [255, 0, 0]
    jpeg = rgb(encode(cmyk, "JPEG", quality=95))[4, 4]
    assert np.abs(jpeg.astype(int) - [255, 0, 0]).max() <= 4


def test_transparency_lies_on_white():
    rgba = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    rgba.putpixel((1, 0), (255, 0, 0, 51))  # one fifth red on white
    assert rgb(encode(rgba)).tolist() == [[[10, 20, 30], [255, 204, 204]]]
    la = Image.new("LA", (2, 1), (100, 255))
    la.putpixel((1, 0), (0, 0))
    assert rgb(encode(la)).tolist() == [[[100] * 3, [255] * 3]]


def test_palette_with_and_without_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 100, 50, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert rgb(encode(palette)).tolist() == [[[200, 100, 50], [0, 0, 255]]]
    assert rgb(encode(palette, transparency=1)).tolist() == [[[200, 100, 50], [255, 255, 255]]]


def test_sixteen_bit_grey_is_scaled():
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert rgb(encode(Image.fromarray(levels)))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert rgb(encode(Image.fromarray(levels), "TIFF"))[0, :, 2].tolist() == [0, 1, 128, 255]
    assert rgb(Image.fromarray(levels.astype(np.int32)))[0, :, 1].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, format):
    stored = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, -1),
        7: np.rot90(PIXELS, 2).transpose(1, 0, 2),
        8: np.rot90(PIXELS, 1),
    }[orientation]
    data = encode(stored, format, exif=exif, **{"WEBP": {"lossless": True}}.get(format, {}))
    if format == "JPEG":
        assert rgb(data).shape == upright.shape
    else:
        assert np.array_equal(rgb(data), upright)
    opened = open_image(data)
    size = opened.size[::-1] if exif_orientation(opened) > 4 else opened.size
    assert size == upright.shape[1::-1], "what a look at the header tells"


def test_broken_exif_is_ignored():
    data = encode(Image.fromarray(PIXELS), "JPEG", exif=b"Exif\0\0garbage")
    assert rgb(data).shape == PIXELS.shape


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_animation(format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    assert rgb(data)[0, 0].tolist() == [255, 0, 0]


def test_large_jpeg_is_decoded_small():
    data = encode(Image.new("RGB", (640, 480), (40, 90, 160)), "JPEG")
    assert decode_image(data).size == (640, 480)
    assert decode_image(data, min_side=200).size == (320, 240)
    assert decode_image(data, min_side=100).size == (160, 120)
    assert decode_image(data, min_side=300).size == (640, 480)
    assert np.abs(rgb(data, min_side=100)[50, 50].astype(int) - [40, 90, 160]).max() <= 3


def broken_images():
    whole = encode(Image.fromarray(np.tile(PIXELS, (20, 20, 1))), "JPEG")
    yield pytest.param({"bytes": b"not an image", "path": "a/b.jpg"}, r"a/b\.jpg.*its format is not known", id="text")
    yield pytest.param({"bytes": b"", "path": "a.jpg"}, "its format is not known", id="nothing")
    yield pytest.param({"bytes": whole[: len(whole) // 2], "path": None}, "truncated", id="truncated")
    yield pytest.param({"bytes": None, "path": "/nowhere/a.jpg"}, "No such file", id="missing file")
    yield pytest.param(None, "the row holds no image", id="null")
    yield pytest.param({"bytes": None, "path": None}, "the row holds no image", id="empty row")
    yield pytest.param(Image.new("F", (2, 2)), "floating-point", id="float")
    flipped = bytearray(encode(Image.fromarray(PIXELS)))
    flipped[45:55] = bytes(10)
    yield pytest.param(bytes(flipped), "cannot be decoded", id="garbled png")


@pytest.mark.parametrize(("value", "reason"), list(broken_images()))
def test_broken_images_name_row_and_reason(value, reason):
    with pytest.raises(CorruptImageError, match=reason) as caught:
        decode_image(value, name="row 7")
    message = str(caught.value)
    assert message.startswith("row 7")
    assert message.endswith(".")
    assert "\n" not in message
    assert " at 0x" not in message


def test_decompression_bombs_are_refused(monkeypatch):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(CorruptImageError, match="decompression bomb"):
        decode_image(bomb)
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 50)
    with pytest.raises(CorruptImageError, match="its 9x6 pixels are more than 50"):
        decode_image(encode(Image.fromarray(PIXELS)))
