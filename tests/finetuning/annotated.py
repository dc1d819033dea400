"""Small annotated data sets in every form that people store them in."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image
from PIL import Image as PILImage


def encoded(pixels: np.ndarray | PILImage.Image, form: str = "PNG", **settings) -> dict:
    """An image file as a cell of an undecoded column."""
    image = pixels if isinstance(pixels, PILImage.Image) else PILImage.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **settings)
    return {"bytes": buffer.getvalue(), "path": None}


def photo(width: int = 64, height: int = 48, orientation: int = 1, seed: int = 0) -> dict:
    """A noisy JPEG that is stored at this size, to be turned by EXIF."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, "JPEG", exif=exif)


def write(folder: Path, column: str, feature, values: Sequence, images: Sequence[dict] | None = None, split="train"):
    """A data set of images and one column of annotations."""
    images = images or [photo(seed=index) for index in range(len(values))]
    features = Features({"image": Image(), column: feature})
    folder.mkdir(exist_ok=True)
    rows = Dataset.from_dict({"image": images, column: list(values)}, features=features)
    rows.to_parquet(folder / f"{split}.parquet")
    return folder
