"""Where an image lies on the canvas that a dense task trains on: one placement for pixels, masks and boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor


@dataclass(frozen=True)
class Axis:
    """One direction: a source of `length` pixels, scaled, laid at `offset` on a canvas of `size` pixels."""

    length: int
    size: int
    scale: float
    offset: int

    @property
    def target(self) -> tuple[int, int]:
        """First and one past the last canvas pixel that the source covers."""
        return max(0, self.offset), min(self.size, self.offset + max(1, round(self.length * self.scale)))

    @property
    def source(self) -> tuple[float, float]:
        """The part of the source that lies there."""
        begin, end = ((edge - self.offset) / self.scale for edge in self.target)
        return max(0.0, begin), min(float(self.length), end)


@dataclass(frozen=True)
class Placement:
    """An image resized and shifted, cut off where it leaves the canvas, then perhaps mirrored."""

    rows: Axis
    columns: Axis
    flip: bool = False

    @classmethod
    def whole(cls, image: Image.Image, size: tuple[int, int]) -> Placement:
        """The image resized to the canvas (height, width), as stock image processors do it."""
        pairs = zip((image.height, image.width), size)
        return cls(*(Axis(length, side, side / length, 0) for length, side in pairs))

    @classmethod
    def random(
        cls,
        image: Image.Image,
        size: tuple[int, int],
        scale_range: tuple[float, float],
        flip_probability: float,
        generator: Generator,
    ) -> Placement:
        """The image at a random multiple of its size on the canvas, and at a random place of it.

        A multiple above 1 leaves a random crop, one below 1 leaves margins to be padded (large-scale jitter, Ghiasi
        et al. 2021, arXiv 2012.07177, section 4).
        """
        low, high = (math.log(value) for value in scale_range)
        factor = math.exp(low + (high - low) * torch.rand((), generator=generator).item())
        axes = []
        for length, side in zip((image.height, image.width), size):
            scale = factor * side / length
            room = side - max(1, round(length * scale))  # negative: the image is larger than the canvas
            offset = int(torch.randint(abs(room) + 1, (), generator=generator)) * (1 if room > 0 else -1)
            axes.append(Axis(length, side, scale, offset))
        return cls(*axes, flip=bool(torch.rand((), generator=generator) < flip_probability))

    def image(self, image: Image.Image, resample: Image.Resampling, fill: Tensor) -> Tensor:
        """Bands of 8 bits to (C, height, width) in [0, 1]; `fill` (C,) where the image is not."""
        (top, bottom), (left, right) = self.rows.target, self.columns.target
        box = (self.columns.source[0], self.rows.source[0], self.columns.source[1], self.rows.source[1])
        patch = np.array(image.resize((right - left, bottom - top), resample, box=box))
        pixels = torch.from_numpy(patch).view(bottom - top, right - left, -1).permute(2, 0, 1).float() / 255
        canvas = fill.view(-1, 1, 1).repeat(1, self.rows.size, self.columns.size)
        canvas[:, top:bottom, left:right] = pixels
        return canvas.flip(2) if self.flip else canvas

    def mask(self, mask: np.ndarray, fill: int) -> Tensor:
        """A class map (H, W) to (height, width) int64 by its nearest pixels; `fill` where the image is not."""
        canvas = torch.full((self.rows.size, self.columns.size), fill)
        indices = []
        for axis in (self.rows, self.columns):
            centres = (np.arange(*axis.target) + 0.5 - axis.offset) / axis.scale
            indices.append(np.clip(centres.astype(np.int64), 0, axis.length - 1))
        (top, bottom), (left, right) = self.rows.target, self.columns.target
        canvas[top:bottom, left:right] = torch.from_numpy(mask[np.ix_(*indices)].astype(np.int64))
        return canvas.flip(1) if self.flip else canvas

    def boxes(self, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) x1, y1, x2, y2 in pixels of the image to pixels of the canvas, clipped to it."""
        scale = torch.tensor([self.columns.scale, self.rows.scale] * 2)
        boxes = boxes * scale + torch.tensor([self.columns.offset, self.rows.offset] * 2)
        limit = torch.tensor([self.columns.size, self.rows.size] * 2)
        boxes = boxes.clamp(min=0).minimum(limit)
        if self.flip:
            left, top, right, bottom = boxes.unbind(1)
            boxes = torch.stack([self.columns.size - right, top, self.columns.size - left, bottom], 1)
        return boxes
