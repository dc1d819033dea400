"""Every way to store a mask is read as it was meant, or refused in one sentence before training."""

import logging
import re

import numpy as np
import pytest
import torch
from annotated import encoded, photo, write
from datasets import Array2D, Image, Value
from PIL import Image as PILImage

from hgkd_hf.data.decode import CorruptImageError
from hgkd_hf.finetuning.masks import IGNORED, read_pixel_values
from hgkd_hf.finetuning.segmentation import SemanticSegmentation

SQUARE = np.zeros((48, 64), np.uint8)
SQUARE[10:30, 20:50] = 1


def segmentation(dataset, names=("ground", "thing"), **settings) -> SemanticSegmentation:
    defaults = {"image_column": "image", "image_size": [64], "class_names": list(names), "flip_probability": 0.0}
    return SemanticSegmentation(str(dataset), "resnet-10", **defaults | settings)


def palette(indices: np.ndarray) -> PILImage.Image:
    image = PILImage.fromarray(indices, "L").convert("P")
    image = PILImage.frombytes("P", image.size, indices.tobytes())
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    return image


def two_bits(indices: np.ndarray) -> dict:
    """A grey PNG of 2 bits a pixel, as optimisers of PNG files write it."""
    import struct
    import zlib

    height, width = indices.shape
    packed = np.packbits(np.unpackbits(indices[..., None], axis=2)[..., -2:].reshape(height, -1), axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 2, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return {"bytes": data, "path": None}


STORED = {
    "8 bit": encoded(SQUARE),
    "1 bit": encoded(PILImage.fromarray(SQUARE.astype(bool))),
    "2 bit": two_bits(SQUARE),
    "16 bit": encoded(SQUARE.astype(np.uint16)),
    "32 bit TIFF": encoded(SQUARE.astype(np.int32), "TIFF"),
    "float TIFF": encoded(SQUARE.astype(np.float32), "TIFF"),
    "palette": encoded(palette(SQUARE)),
    "equal bands": encoded(np.repeat(SQUARE[..., None], 3, 2)),
    "grey and alpha": encoded(PILImage.merge("LA", [PILImage.fromarray(SQUARE), PILImage.new("L", (64, 48), 255)])),
    "lists": SQUARE.tolist(),
}


@pytest.mark.parametrize("kind", STORED)
def test_class_numbers_are_read_as_stored(kind):
    pixels = read_pixel_values(STORED[kind], "row 0")
    assert pixels.dtype.kind in "ui"
    np.testing.assert_array_equal(pixels, SQUARE)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "row 3 has no mask."),
        ({"bytes": None, "path": None}, "row 3: the mask cannot be decoded: the row holds no image."),
        ({"bytes": STORED["8 bit"]["bytes"][:70], "path": None}, "row 3: the mask cannot be decoded: "),
        ({"bytes": b"no image", "path": None}, "row 3: the mask cannot be decoded: its format is not known."),
        (encoded(SQUARE, "JPEG"), "row 3: the mask is a JPEG, which changes class numbers: store masks as PNG."),
        (
            encoded(np.full((4, 6, 3), (128, 0, 0), np.uint8)),
            "row 3: the mask has mode RGB, a picture of colours such as (128, 0, 0), but",
        ),
        (encoded(np.full((4, 6), 0.5, np.float32), "TIFF"), "row 3: the mask holds 0.5, but classes are whole"),
        (encoded(np.full((4, 6), np.nan, np.float32), "TIFF"), "row 3: the mask holds nan, but classes are whole"),
        ([[0, 1], [0]], "row 3: the mask's rows differ in length."),
        (7, "row 3: the mask has shape () of int64"),
        ("mask.png", "row 3: the mask (mask.png) cannot be decoded: [Errno 2] No such file"),
    ],
    ids=["none", "null", "truncated", "no image", "jpeg", "colours", "float", "nan", "ragged", "number", "text"],
)
def test_what_is_no_map_of_class_numbers_is_named(value, message):
    with pytest.raises(CorruptImageError, match=re.escape(message)):
        read_pixel_values(value, "row 3")


@pytest.mark.parametrize(
    ("ignore_index", "stored", "expected"),
    [
        (65535, [0, 255, 300, 65535], [0, 255, 300, IGNORED]),
        (255, [0, 254, 256, 255], [0, 254, 256, IGNORED]),
        (0, [0, 1, 256, 319], [IGNORED, 1, 256, 319]),
        (-1, [0, 255, 300, -1], [0, 255, 300, IGNORED]),
        (70000, [0, 255, 300, 70000], [0, 255, 300, IGNORED]),
    ],
)
def test_class_numbers_never_wrap(ignore_index, stored, expected, tmp_path):
    """Read, placed on the canvas, predicted and scored: 320 classes, and whatever value is ignored."""
    mask = np.repeat(np.array(stored, np.int32)[None], 4, 0)
    cell = encoded(mask, "TIFF") if mask.min() < 0 or mask.max() > 65535 else encoded(mask.astype(np.uint16))
    task = segmentation("-", [f"c{i}" for i in range(320)], ignore_index=ignore_index)
    classes = task.read_mask(cell, PILImage.new("RGB", (4, 4)), "row 0")
    assert classes[0].tolist() == expected
    dataset = segmentation(
        write(tmp_path, "mask", Image(), [cell] * 2, [photo(4, 4)] * 2), task.class_names, ignore_index=ignore_index
    ).training_data(0)
    assert set(dataset[0]["labels"].unique().tolist()) <= {*expected, IGNORED}
    assert max(dataset[0]["labels"].unique()) == max(expected)


def test_predictions_never_wrap():
    task = segmentation("-", [f"c{i}" for i in range(320)])
    logits = torch.zeros(1, 320, 2, 2)
    logits[0, 300] = 1

    def model(pixel_values):
        return type("Output", (), {"logits": logits})

    labels = torch.full((1, 2, 2), 300)
    (counts,) = task.predict(model, {"pixel_values": torch.zeros(1, 3, 2, 2), "labels": labels})
    assert counts[300].tolist() == [4, 0, 0]
    assert task.score([counts])["iou_c300"] == 1


def repeated(mask: np.ndarray, count: int = 8) -> list[dict]:
    return [encoded(mask)] * count


HALF_VOID = np.where(np.arange(64) < 40, 255, SQUARE).astype(np.uint8)
REFUSED = {
    "0 and 255": (
        repeated(SQUARE * 255),
        "only class 'ground' occurs, 'thing' never, and 19.5% of the pixels of all 8 masks are ignored; the values "
        "are 0, 255. Correct --ignore_index, or say with --mask_values which value is which class, such as "
        "--mask_values 0 255 for ground, thing.",
    ),
    "0 and 128": (
        repeated(SQUARE * 128),
        "8 of all 8 masks hold values of no class (19.5% of the pixels): 128; the 2 classes are 0, 1. Name more "
        "--class_names, set --ignore_index 128, or say with --mask_values which value is which class, such as",
    ),
    "from 1": (repeated(SQUARE + 1), "such as --mask_values 1 2 for ground, thing."),
    "one class": (repeated(SQUARE * 0), "only class 'ground' occurs, 'thing' never, and 0.0% of the pixels of all 8"),
    "all ignored": (repeated(SQUARE * 0 + 255), "no class occurs, 'ground', 'thing' never, and 100.0% of the pixels"),
    "a rare wrong value": (
        [*repeated(SQUARE, 7), encoded(np.where(np.arange(64) < 1, 9, SQUARE).astype(np.uint8))],
        "1 of all 8 masks hold values of no class (0.2% of the pixels): 9; the 2 classes are 0, 1. Name more",
    ),
    "another size": (repeated(SQUARE[:24]), "8 of all 8 masks cannot be used. The first: row 0: the mask has 64x24"),
    "colours": (repeated(np.full((48, 64, 3), (0, 128, 0), np.uint8)), "8 of all 8 masks cannot be used. The first"),
    "lossy": ([encoded(SQUARE, "JPEG")] * 8, "the mask is a JPEG"),
    "missing": ([None] * 8, "8 of all 8 masks cannot be used. The first: row 0 has no mask."),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_masks_that_cannot_teach_are_refused_before_training(kind, tmp_path):
    masks, message = REFUSED[kind]
    task = segmentation(write(tmp_path, "mask", Image(), masks))
    with pytest.raises(ValueError, match=re.escape(f"split 'train' of '{tmp_path}': ")) as error:
        task.training_data(0)
    assert message in str(error.value)


WARNED = {
    "a class that never occurs": (
        {"class_names": ["ground", "thing", "sky"]},
        repeated(SQUARE),
        "1 of 3 classes never",
    ),
    "many ignored pixels": (
        {},
        repeated(HALF_VOID),
        "62.5% of the pixels of all 8 masks are ignored (--ignore_index)",
    ),
    "two missing": (
        {},
        [*repeated(SQUARE, 2), None, None],
        "2 of all 4 masks cannot be used and are skipped: row 2 has no mask.",
    ),
    "rare class among many masks": (
        {},
        [*repeated(SQUARE * 0, 300), encoded(SQUARE)],
        "1 of 2 classes never occur in 256 of 301 masks: 'thing'.",
    ),
}


@pytest.mark.parametrize("kind", WARNED)
def test_doubtful_masks_are_warned_about_with_counts(kind, tmp_path, caplog):
    settings, masks, message = WARNED[kind]
    images = [photo()] * len(masks)
    with caplog.at_level(logging.WARNING):
        segmentation(write(tmp_path, "mask", Image(), masks, images), **settings).training_data(0)
    assert f"split 'train' of '{tmp_path}': {message}" in caplog.text


def test_sound_masks_pass_without_a_word(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = segmentation(write(tmp_path, "mask", Image(), repeated(SQUARE))).training_data(0)
    assert not caplog.records
    assert set(dataset[0]["labels"].unique().tolist()) <= {0, 1, IGNORED}


def test_mask_values_map_any_value_to_its_class(tmp_path):
    dataset = write(tmp_path, "mask", Image(), repeated(SQUARE * 255))
    evaluated = segmentation(dataset, mask_values=[0, 255], eval_split="train").evaluation_data()
    np.testing.assert_array_equal(evaluated[0]["labels"], SQUARE)


@pytest.mark.parametrize("values", [[0], [0, 0], [0, 1, 2]])
def test_mask_values_that_do_not_fit_the_classes_are_refused(values, tmp_path):
    task = segmentation(write(tmp_path, "mask", Image(), repeated(SQUARE)), mask_values=values)
    with pytest.raises(ValueError, match="but 2 different values are needed, one for each class of 'ground', 'thing'"):
        task.training_data(0)


def test_rows_without_a_usable_mask_are_skipped_counted_and_named(tmp_path):
    """Null, truncated, of another size, of no class: as for images that cannot be read."""
    bad = [None, {"bytes": encoded(SQUARE)["bytes"][:70], "path": None}, encoded(SQUARE[:24]), encoded(SQUARE + 7)]
    masks = [*repeated(SQUARE, 300), *bad]
    images = [photo()] * len(masks)
    task = segmentation(write(tmp_path, "mask", Image(), masks, images))
    dataset = task.training_data(0, tmp_path / "skipped.tsv")
    for index in range(300, 304):
        assert dataset[index]["sample_index"] == 0  # the next that is whole
    assert dataset.num_skipped == 4
    named = (tmp_path / "skipped.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in named] == ["300", "301", "302", "303"]
    for line, reason in zip(
        named, ["has no mask", "cannot be decoded", "they must agree", "the value 8, which is of no"]
    ):
        assert reason in line


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_of_images_that_exif_turns(orientation, tmp_path, caplog):
    """Stored unturned they differ in size where width and height are swapped; else only a warning can tell."""
    swaps = orientation >= 5
    images = [photo(orientation=orientation)] * 8
    write(tmp_path, "mask", Image(), repeated(SQUARE), images)
    task = segmentation(tmp_path)
    with caplog.at_level(logging.WARNING):
        if swaps:
            with pytest.raises(
                ValueError, match="the masks of 8 rows, the first is row 0, fit their images only as th"
            ):
                task.training_data(0)
            upright = PILImage.new("RGB", (48, 64))
            with pytest.raises(CorruptImageError, match=r"they must agree \(is the image turned by its EXIF"):
                task.read_mask(encoded(SQUARE), upright, "row 0")
        else:
            task.training_data(0)
    assert ("8 of 8 images looked at are turned upright by their EXIF orientation" in caplog.text) == (
        orientation not in (1, *range(5, 9))
    )


def test_upright_masks_of_turned_images_are_right(tmp_path, caplog):
    images = [photo(48, 64, orientation=6)] * 4 + [photo()] * 4
    with caplog.at_level(logging.WARNING):
        segmentation(write(tmp_path, "mask", Image(), repeated(SQUARE), images)).training_data(0)
    assert "4 of 8 images looked at are turned upright by their EXIF orientation: their masks must be" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("feature", "values"),
    [(Array2D((48, 64), "uint8"), [SQUARE] * 4), (Value("binary"), [encoded(SQUARE)["bytes"]] * 4)],
    ids=["array", "bytes"],
)
def test_masks_need_not_be_images(feature, values, tmp_path):
    dataset = segmentation(write(tmp_path, "mask", feature, values)).training_data(0)
    assert 1 in dataset[0]["labels"].unique()


@pytest.mark.parametrize("inside", [True, False], ids=["of the data set", "elsewhere"])
def test_masks_that_rows_name_by_a_path_lie_in_the_data_set(inside, tmp_path):
    """What a downloaded table names must not be opened wherever it lies."""
    folder = tmp_path / "data"
    place = (folder if inside else tmp_path) / "secret.png"
    folder.mkdir()
    place.write_bytes(encoded(SQUARE)["bytes"])
    task = segmentation(write(folder, "mask", Value("string"), [str(place)] * 4))
    if inside:
        assert 1 in task.training_data(0)[0]["labels"].unique()
    else:
        with pytest.raises(ValueError, match=r"row 0: the mask .* cannot be decoded: it is named as .*outside of the"):
            task.training_data(0)


def test_the_mask_column_is_not_taken_for_the_images(tmp_path):
    task = segmentation(write(tmp_path, "mask", Image(), repeated(SQUARE)), image_column=None)
    assert task.source.image_column == "image"
