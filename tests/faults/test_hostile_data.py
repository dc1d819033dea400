"""A folder of 60 hostile files: exactly the good ones are used, and the bad ones listed."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from toy_run import build_model

from hgkd_hf.checkpoints.folders import RunStopped
from hgkd_hf.data import DistillationDataset, ImageTransform, load_images
from hgkd_hf.training.trainer import DistillationArguments, DistillationTrainer

CHANCE = np.random.default_rng(0)


def pixels(height=40, width=30, channels=3):
    return Image.fromarray(CHANCE.integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze())


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(pixels(), "JPEG", exif=exif)


def bomb():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


GOOD = {
    "one-pixel.png": lambda: encoded(pixels(1, 1), "PNG"),
    "long.png": lambda: encoded(pixels(3, 900), "PNG"),
    "cmyk.jpg": lambda: encoded(pixels().convert("CMYK"), "JPEG"),
    "palette.png": lambda: encoded(pixels().convert("P"), "PNG", transparency=3),
    "sixteen-bit.png": lambda: encoded(Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70), "PNG"),
    "rgba.png": lambda: encoded(pixels(channels=4), "PNG"),
    "animated.gif": lambda: encoded(pixels(), "GIF", save_all=True, append_images=[pixels()]),
    "rotated.jpg": rotated,
    "really-png.jpg": lambda: encoded(pixels(), "PNG"),
    "grey.webp": lambda: encoded(pixels().convert("L"), "WEBP"),
}
BAD = {
    "truncated.jpg": lambda: encoded(pixels(200, 200), "JPEG")[:4000],
    "truncated.png": lambda: encoded(pixels(200, 200), "PNG")[:4000],
    "empty.jpg": lambda: b"",
    "text.png": lambda: b"<html>404 Not Found</html>",
    "bomb.png": bomb,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    for kind, make in {**GOOD, **BAD}.items():
        for number in range(4):
            (folder / f"{number}-{kind}").write_bytes(make())
    assert len(list(folder.iterdir())) == 60
    return folder


def train(folder, run, **settings):
    model = build_model()
    data = DistillationDataset(
        load_images(folder),
        ImageTransform(64, train=True),
        seed=0,
        cell_grid=model.config.cell_grid,
        mask_ratio=0.6,
        skipped_log=run / "skipped.tsv",
    )
    used = set()

    class Trainer(DistillationTrainer):
        def compute_loss(self, model, inputs, **kwargs):
            used.update(inputs["sample_index"].tolist())
            assert torch.isfinite(inputs["pixel_values"]).all()
            return super().compute_loss(model, inputs, **kwargs)

    args = DistillationArguments(
        str(run), per_device_train_batch_size=10, save_strategy="no", logging_steps=1, disable_tqdm=True, **settings
    )
    Trainer(model, args, data).train()
    return used, data


def test_trains_through(folder, tmp_path):
    used, data = train(folder, tmp_path, num_train_epochs=2, max_skipped_share=0.4)
    names = [row["image"]["path"].rsplit("/", 1)[-1] for row in data.rows]
    assert {names[index] for index in used} == {f"{number}-{kind}" for number in range(4) for kind in GOOD}
    lines = [line.split("\t") for line in (tmp_path / "skipped.tsv").read_text().splitlines()]
    listed = [path.rsplit("/", 1)[-1] for _, path, _ in lines]
    assert sorted(listed) == sorted(f"{number}-{kind}" for number in range(4) for kind in BAD)
    assert all(names[int(row)] == name for (row, _, _), name in zip(lines, listed))
    assert data.skipped_share == 20 / 60
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss" in entry for entry in entries) == 12


def test_too_many_end_the_run(folder, tmp_path):
    with pytest.raises(RunStopped, match=r"of the images cannot be read \(named in .*skipped.tsv\), .*share 0.1:"):
        train(folder, tmp_path, num_train_epochs=2)
