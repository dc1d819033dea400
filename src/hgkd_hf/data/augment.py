"""Augmentation as a function of (seed, epoch, index): the same sample in any worker, process, order or resumed run."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Generator, Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hgkd_hf.objectives.masked_patches import block_mask, draw_mask_ratio

IMAGENET_MEAN = tuple(IMAGENET_DEFAULT_MEAN)
IMAGENET_STD = tuple(IMAGENET_DEFAULT_STD)


def sample_generator(seed: int, epoch: int, index: int, purpose: str) -> Generator:
    """A CPU generator that depends on nothing but its arguments.

    Args:
        seed: of the run.
        epoch: number of passes over the data before this one.
        index: of the sample in the dataset.
        purpose: e.g. `view` or `mask`; different purposes draw independently.
    """
    # Hashed, because torch keeps 32 bits of a seed: a sum or a shift of the three would give neighbours one stream.
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}/{purpose}".encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@dataclass(frozen=True)
class ImageTransform:
    """RGB image -> 8-bit tensor, which `normalize` makes a model's input of once it is on the model's device.

    With `train`: a random crop of `crop_scale` of the area and `crop_ratio` width / height, resized to `image_size`
    (Inception's crop, Szegedy et al. 2015, arXiv:1409.4842, section 6; ten tries, then the largest centred crop),
    a horizontal flip, colours, blur and solarisation. Without: the centred crop that remains when the image is
    resized until it just covers `image_size / crop_fraction`.

    Both resize by antialiased bicubic interpolation: evaluation by Pillow, as the student's published image processor
    does, and training by torch, which differs from it by at most 1 of 255, takes a fifth of the time
    (`benchmarks/loader.py`), and gives the same bits with and without vector instructions.

    Attributes:
        image_size: of the output in pixels, side or (height, width).
        train: random or deterministic.
        crop_scale: range of the crop's share of the area; 0.67 is SparK's (arXiv:2301.03580), which masks already.
        crop_ratio: range of the crop's width / height, drawn log-uniformly.
        flip_probability: of a horizontal flip.
        color_jitter: s scales brightness, contrast and saturation, in this order, by factors from [1 - s, 1 + s].
        color_distortion: s, with probability 0.8, scales brightness, contrast and saturation by factors from
            [1 - 0.8 s, 1 + 0.8 s] and turns hues by up to 0.2 s of the circle, in random order; then, with probability
            0.2, takes the colours away (SimCLR, arXiv:2002.05709, appendix A).
        blur_probability: of a Gaussian blur with a radius of 0.1 to 2 pixels (BYOL, arXiv:2006.07733, appendix B).
        solarize_probability: of inverting all values above 128 (as there).
        image_mean: of the channels, for pixels in [0, 1].
        image_std: of the channels, for pixels in [0, 1].
        crop_fraction: share of the resized image's side that an evaluation crop keeps: 1 for small images, often
            0.875 for 224 pixels.
    """

    image_size: int | tuple[int, int]
    train: bool
    crop_scale: tuple[float, float] = (0.67, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    color_jitter: float = 0.0
    color_distortion: float = 0.0
    blur_probability: float = 0.0
    solarize_probability: float = 0.0
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD
    crop_fraction: float = 1.0

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"image_size is {self.image_size}, but it must be at least 1 pixel.")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is {self.crop_scale}, but it must be a rising pair in (0, 1].")
        if len(self.crop_ratio) != 2 or not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio is {self.crop_ratio}, but it must be a rising pair above 0.")
        for name in (
            "flip_probability",
            "color_jitter",
            "color_distortion",
            "blur_probability",
            "solarize_probability",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be in [0, 1].")
        if not len(self.image_mean) == len(self.image_std) == 3:
            raise ValueError(
                f"image_mean is {self.image_mean} and image_std {self.image_std}, but RGB needs 3 of each."
            )
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction is {self.crop_fraction}, but it must be in (0, 1].")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the output in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else tuple(self.image_size)

    @property
    def min_decoded_side(self) -> int:
        """Sides (pixels) below which an image would be enlarged after its crop; see `decode_image`."""
        if not self.train:
            return math.ceil(max(self.size) / self.crop_fraction)
        narrowest = min(self.crop_ratio[0], 1 / self.crop_ratio[1])
        return math.ceil(max(self.size) / math.sqrt(self.crop_scale[0] * narrowest))

    def __call__(self, image: Image.Image, generator: Generator | None = None) -> Tensor:
        """Transform one image.

        Args:
            image: RGB.
            generator: source of everything random; needed if `train`.

        Returns:
            (3, height, width) uint8.

        Raises:
            ValueError: `train` without a generator.
        """
        if not self.train:
            # The crop is cut while resizing: resizing all of a long narrow image first could take any memory.
            box = self.center_box(image.width, image.height)
            return _to_tensor(image.resize(self.size[::-1], Image.Resampling.BICUBIC, box=box))
        if generator is None:
            raise ValueError(
                "A training transform needs a generator: pass sample_generator(seed, epoch, index, 'view')."
            )
        return self.render(image, *self.random_view(image.width, image.height, generator), generator)

    def render(self, image: Image.Image, box: tuple[int, int, int, int], flip: bool, generator: Generator) -> Tensor:
        """The view that `random_view` drew, as (3, height, width) uint8; colours are drawn now."""
        pixels = torch.from_numpy(np.array(image.crop(box))).permute(2, 0, 1)  # channels last, as torch is fastest
        pixels = F.interpolate(pixels[None], self.size, mode="bicubic", antialias=True)[0]
        if flip:
            pixels = pixels.flip(2)
        if not (self.color_jitter or self.color_distortion or self.blur_probability or self.solarize_probability):
            return pixels
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        if self.color_jitter:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                factor = _uniform(1 - self.color_jitter, 1 + self.color_jitter, generator)
                image = enhance(image).enhance(factor)
        if self.color_distortion:
            image = _distort_colors(image, self.color_distortion, generator)
        if self.blur_probability and torch.rand((), generator=generator) < self.blur_probability:
            image = image.filter(ImageFilter.GaussianBlur(_uniform(0.1, 2.0, generator)))
        if self.solarize_probability and torch.rand((), generator=generator) < self.solarize_probability:
            image = ImageOps.solarize(image, 128)
        return _to_tensor(image)

    def random_view(self, width: int, height: int, generator: Generator) -> tuple[tuple[int, int, int, int], bool]:
        """Draw the crop (left, top, right, bottom), in pixels, of an image of `width` x `height`, and its flip."""
        box = self.random_box(width, height, generator)
        return box, bool(torch.rand((), generator=generator) < self.flip_probability)

    def random_box(self, width: int, height: int, generator: Generator) -> tuple[int, int, int, int]:
        """Draw a crop (left, top, right, bottom), in pixels, of an image of `width` x `height`."""
        for _ in range(10):
            area = width * height * _uniform(*self.crop_scale, generator)
            ratio = math.exp(_uniform(math.log(self.crop_ratio[0]), math.log(self.crop_ratio[1]), generator))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left = int(torch.randint(width - w + 1, (), generator=generator))
                top = int(torch.randint(height - h + 1, (), generator=generator))
                return left, top, left + w, top + h
        ratio = min(max(width / height, self.crop_ratio[0]), self.crop_ratio[1])
        w, h = max(1, min(width, round(height * ratio))), max(1, min(height, round(width / ratio)))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def center_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The evaluation crop (left, top, right, bottom), in pixels, of an image of `width` x `height`."""
        scale = max(self.size[0] / height, self.size[1] / width) / self.crop_fraction
        w, h = min(width, self.size[1] / scale), min(height, self.size[0] / scale)
        left, top = (width - w) / 2, (height - h) / 2
        return left, top, left + w, top + h

    def normalize(self, pixels: Tensor) -> Tensor:
        """(..., 3, H, W) uint8 -> float32 of that shape on its device, `(pixel / 255 - mean) / std`."""
        pixels = pixels.float().div_(255)
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.image_mean, self.image_std))
        return pixels.sub_(mean).div_(std)


@dataclass(frozen=True)
class MultiCropTransform:
    """RGB image -> global and local crops of 8 bits (SwAV, arXiv:2006.09882, section 4).

    Attributes:
        global_transforms: one for each global crop; all of one size.
        local_transform: for every local crop.
        num_local: number of local crops.
        mask_grid: (gh, gw) patches of a global crop, some of which iBOT hides in blocks; None: no masks.

    Raises:
        ValueError: there is no global crop, their sizes differ, or a number is negative.
    """

    global_transforms: tuple[ImageTransform, ...]
    local_transform: ImageTransform | None = None
    num_local: int = 0
    mask_grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len({transform.size for transform in self.global_transforms}) != 1:
            raise ValueError("the global crops must be at least one, all of one size (global_crops).")
        if self.num_local < 0 or (self.num_local and self.local_transform is None):
            raise ValueError(f"local_crops is {self.num_local}, but it must be 0 or more, with their transform.")

    @property
    def min_decoded_side(self) -> int:
        """As `ImageTransform.min_decoded_side`, for all crops."""
        transforms = self.global_transforms + (self.local_transform,) * bool(self.num_local)
        return max(transform.min_decoded_side for transform in transforms)

    def __call__(self, image: Image.Image, generator: Generator) -> dict[str, Tensor]:
        """`pixel_values` (G, 3, H, W) uint8 and, where asked for, two more.

        `local_pixel_values` (L, 3, h, w) uint8, and `bool_masked_pos` (G, gh, gw) bool, True = hidden.
        """
        views = {"pixel_values": torch.stack([crop(image, generator) for crop in self.global_transforms])}
        if self.num_local:
            local = [self.local_transform(image, generator) for _ in range(self.num_local)]
            views["local_pixel_values"] = torch.stack(local)
        if self.mask_grid is not None:
            masks = [block_mask(self.mask_grid, draw_mask_ratio(generator), generator) for _ in self.global_transforms]
            views["bool_masked_pos"] = torch.stack(masks)
        return views

    def normalize(self, pixels: Tensor) -> Tensor:
        """`ImageTransform.normalize` of the first global crop's transform, for all crops."""
        return self.global_transforms[0].normalize(pixels)


def _to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _distort_colors(image: Image.Image, strength: float, generator: Generator) -> Image.Image:
    if torch.rand((), generator=generator) < 0.8:
        spread = 0.8 * strength
        for operation in torch.randperm(4, generator=generator).tolist():
            if operation == 3:
                image = _turn_hue(image, _uniform(-0.2, 0.2, generator) * strength)
            else:
                enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[operation]
                image = enhance(image).enhance(_uniform(1 - spread, 1 + spread, generator))
    if torch.rand((), generator=generator) < 0.2:
        image = image.convert("L").convert("RGB")
    return image


def _turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Turn all hues by a share of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    hue = Image.fromarray((np.array(hue).astype(np.int16) + round(turn * 256)).astype(np.uint8))  # wraps around
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _uniform(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()
