"""Toy datasets and students of each task."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from hgkd_hf import SparseUNetModel
from hgkd_hf.hub import student_image_processor

ENCODER = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 16,
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 1, 1],
}


@pytest.fixture(scope="session")
def encoder_json() -> str:
    return json.dumps(ENCODER)


def picture(generator: torch.Generator, box: tuple[int, int, int, int], kind: int) -> PILImage.Image:
    """A grey picture of 80 x 60 pixels with a rectangle, red or green."""
    pixels = torch.randint(60, 120, (60, 80, 3), generator=generator)
    left, top, width, height = box
    pixels[top : top + height, left : left + width] = 20
    pixels[top : top + height, left : left + width, kind] = 240
    return PILImage.fromarray(pixels.to(torch.uint8).numpy())


@pytest.fixture(scope="session")
def rectangles(tmp_path_factory) -> Path:
    """Parquet files with all three kinds of targets: `label`, `mask` (class 2 = void on the left edge), `objects`."""
    folder = tmp_path_factory.mktemp("rectangles")
    features = Features(
        {
            "image": Image(),
            "label": ClassLabel(names=["red", "green"]),
            "mask": Image(),
            "objects": {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=["red", "green"]))},
        }
    )
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 16), ("test", 6)):
        rows = {name: [] for name in features}
        for index in range(count):
            kind = index % 2
            left, top = torch.randint(5, 30, (2,), generator=generator).tolist()
            box = (left, top, 30, 25)
            mask = np.full((60, 80), 0, dtype=np.uint8)
            mask[top : top + 25, left : left + 30] = 1
            mask[:, :4] = 2
            rows["image"].append(picture(generator, box, kind))
            rows["label"].append(kind)
            rows["mask"].append(PILImage.fromarray(mask))
            rows["objects"].append({"bbox": [[float(value) for value in box]], "category": [kind]})
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory) -> Path:
    """What a run of distillation leaves: the stock encoder at the root, the whole student below it."""
    from transformers import AutoConfig

    from hgkd_hf import SparseUNetConfig

    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(3)
    config = SparseUNetConfig(encoder_config=AutoConfig.for_model(**ENCODER), decoder_width=64)
    student = SparseUNetModel(config)
    processor = student_image_processor(64, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    for target, model in ((folder, student.to_native()), (folder / "sparse_unet", student)):
        model.save_pretrained(target)
        processor.save_pretrained(target)
    return folder
