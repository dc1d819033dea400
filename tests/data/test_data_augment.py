"""Crops, flips and normalisation against values worked out by hand; randomness only from the generator."""

import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hgkd_hf.data import ImageTransform, sample_generator

PIXELS = np.random.default_rng(1).integers(0, 256, (20, 16, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)


def as_pixels(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy()


def generator(index: int = 0) -> torch.Generator:
    return sample_generator(0, 0, index, "view")


def test_generator_depends_on_each_argument_and_nothing_else():
    def draw(*key):
        return torch.rand(4, generator=sample_generator(*key)).tolist()

    torch.manual_seed(1)
    first = draw(0, 1, 2, "view")
    torch.manual_seed(2)
    assert draw(0, 1, 2, "view") == first
    others = [draw(1, 1, 2, "view"), draw(0, 2, 1, "view"), draw(0, 1, 3, "view"), draw(0, 1, 2, "mask")]
    assert all(other != first for other in others)
    # Fixed for ever: a changed value would change what a resumed run sees.
    assert sample_generator(0, 1, 2, "view").initial_seed() == 4621457591914382829


def test_neighbouring_keys_are_well_mixed():
    draws = torch.stack(
        [torch.rand(2, generator=sample_generator(0, e, i, "view")) for e in range(8) for i in range(64)]
    )
    assert (draws.mean(0) - 0.5).abs().max() < 4 * math.sqrt(1 / 12 / len(draws))
    assert torch.corrcoef(draws.T)[0, 1].abs() < 0.2
    assert len(draws.unique(dim=0)) == len(draws)


def test_random_crop_takes_the_pixels_of_its_box():
    # A quarter of 16 x 16 pixels with ratio 1 is always 8 x 8, so nothing is interpolated.
    image = IMAGE.crop((0, 0, 16, 16))
    transform = ImageTransform(8, True, crop_scale=(0.25, 0.25), crop_ratio=(1, 1), flip_probability=0)
    corners = set()
    for i in range(50):
        left, top, right, bottom = transform.random_box(16, 16, generator(i))
        assert (right - left, bottom - top) == (8, 8)
        assert np.array_equal(as_pixels(transform(image, generator(i))), PIXELS[top:bottom, left:right])
        corners.add((left, top))
    assert len(corners) > 30
    assert {0, 8} <= {left for left, _ in corners} & {top for _, top in corners}, "the crop reaches each border"


def test_crop_area_and_ratio_stay_in_their_ranges():
    transform = ImageTransform(8, True)
    areas, ratios = [], []
    for i in range(200):
        left, top, right, bottom = transform.random_box(500, 375, generator(i))
        assert 0 <= left < right <= 500
        assert 0 <= top < bottom <= 375
        areas.append((right - left) * (bottom - top) / (500 * 375))
        ratios.append((right - left) / (bottom - top))
    assert 0.66 < min(areas) < 0.72 < 0.9 < max(areas) <= 1
    assert 0.74 < min(ratios) < max(ratios) < 1.34


def test_impossible_crop_falls_back_to_the_centre():
    transform = ImageTransform(8, True)
    assert transform.random_box(100, 10, generator()) == (43, 0, 56, 10)  # ratio 4 / 3 of the full height
    assert transform.random_box(10, 100, generator()) == (0, 43, 10, 56)
    assert transform.random_box(1, 1000, generator()) == (0, 499, 1, 500)
    assert transform(Image.new("RGB", (1, 1000)), generator()).shape == (3, 8, 8)


def test_flip():
    whole = {"crop_scale": (1, 1), "crop_ratio": (1, 1)}
    image = IMAGE.crop((0, 0, 16, 16))
    flipped = ImageTransform(16, True, flip_probability=1, **whole)(image, generator())
    assert np.array_equal(as_pixels(flipped), PIXELS[:16, ::-1])
    half = ImageTransform(16, True, **whole)
    count = sum(np.array_equal(as_pixels(half(image, generator(i))), PIXELS[:16, ::-1]) for i in range(200))
    assert 70 < count < 130


def test_normalisation_values():
    transform = ImageTransform(2, False)
    pixels = transform(Image.new("RGB", (2, 2), (255, 0, 51)))
    assert (pixels.shape, pixels.dtype, pixels.is_contiguous()) == ((3, 2, 2), torch.uint8, True)
    output = transform.normalize(pixels)
    assert output.dtype == torch.float32
    assert pixels[0, 0, 0] == 255, "the input is left as it was"
    batch = transform.normalize(torch.stack([pixels, pixels])[None])
    assert torch.equal(batch[0, 1], output), "the same bits in a batch"
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert torch.allclose(output[:, 0, 0], torch.tensor(expected), atol=1e-6)


def test_evaluation_crop():
    # 16 x 20 already has a short side of 16: rows 2..17 remain, untouched.
    assert np.array_equal(as_pixels(ImageTransform(16, False)(IMAGE)), PIXELS[2:18])
    assert ImageTransform(8, False).center_box(16, 20) == (0, 2, 16, 18)
    assert ImageTransform(8, False, crop_fraction=0.5).center_box(16, 20) == (4, 6, 12, 14)
    assert ImageTransform((4, 8), False).center_box(16, 20) == (0, 6, 16, 14)
    assert ImageTransform((4, 8), False)(IMAGE).shape == (3, 4, 8)
    assert ImageTransform(64, False)(Image.new("RGB", (1, 100_000))).shape == (3, 64, 64), "no huge intermediate"


def test_evaluation_equals_resize_then_crop():
    smooth = Image.fromarray(np.add.outer(np.arange(80), np.arange(120)).astype(np.uint8)).convert("RGB")
    ours = as_pixels(ImageTransform(28, False, crop_fraction=0.7)(smooth)).astype(int)
    usual = smooth.resize((60, 40), Image.Resampling.BICUBIC).crop((16, 6, 44, 34))
    assert np.abs(ours - np.asarray(usual)).max() <= 1


@pytest.mark.parametrize(("size", "mode"), [((90, 70), "RGB"), ((20, 33), "RGB"), ((200, 31), "L")])
def test_training_resizes_as_pillow_does_within_one_level(size, mode):
    pixels = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode).convert("RGB")
    transform = ImageTransform((32, 24), True, flip_probability=0)
    for index in range(5):
        found = transform(image, generator(index))
        assert (found.shape, found.dtype, found.is_contiguous()) == ((3, 32, 24), torch.uint8, True)
        box = transform.random_box(*image.size, generator(index))
        wanted = np.asarray(image.crop(box).resize((24, 32), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(as_pixels(found) - wanted).max() <= 1


def test_views_have_the_same_bits_with_and_without_vector_instructions():
    script = (
        "import hashlib, numpy as np; from PIL import Image;"
        "from hgkd_hf.data import ImageTransform, sample_generator;"
        "image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 210, 3), dtype=np.uint8));"
        "view = lambda i: ImageTransform(64, True)(image, sample_generator(0, 0, i, 'view')).numpy().tobytes();"
        "print(hashlib.sha256(b''.join(view(i) for i in range(8))).hexdigest())"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"ATEN_CPU_CAPABILITY": level, "OMP_NUM_THREADS": threads},
            check=True,
            capture_output=True,
        ).stdout
        for level, threads in (("default", "1"), ("avx2", "2"))
    ]
    assert digests[0] == digests[1]
    assert len(digests[0].strip()) == 64


def test_color_jitter():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))  # contrast and saturation leave one grey alone
    jitter = ImageTransform(4, True, color_jitter=0.4)
    values = {int(jitter(grey, generator(i))[0, 0, 0]) for i in range(40)}
    assert len(values) > 10
    assert 59 <= min(values) < 75 < 125 < max(values) <= 141
    assert not torch.equal(jitter(IMAGE, generator()), ImageTransform(4, True)(IMAGE, generator()))


def test_only_the_generator_is_random():
    transform = ImageTransform(8, True, color_jitter=0.5)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = transform(IMAGE, generator(3))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[1:]
    torch.manual_seed(99)
    assert torch.equal(transform(IMAGE, generator(3)), first)
    assert not torch.equal(transform(IMAGE, generator(4)), first)


def test_decoded_side_never_forces_enlargement():
    transform = ImageTransform(64, True, crop_scale=(0.2, 1.0))
    side = transform.min_decoded_side
    for i in range(200):
        left, top, right, bottom = transform.random_box(side, side, generator(i))
        assert min(right - left, bottom - top) >= 63
    assert ImageTransform((64, 96), False, crop_fraction=0.75).min_decoded_side == 128


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"crop_scale": (0.5, 0.2)},
        {"crop_scale": (0.5,)},
        {"crop_ratio": (1.0, 1.0, 1.0)},
        {"crop_scale": (0.5, 1.5)},
        {"crop_ratio": (0, 1)},
        {"flip_probability": 2},
        {"color_jitter": -1},
        {"crop_fraction": 0},
        {"image_mean": (0.5,)},
    ],
    ids=str,
)
def test_wrong_options_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*[:,] (choose|but)"):
        ImageTransform(**{"image_size": 8, "train": True} | wrong)


def test_training_needs_a_generator():
    with pytest.raises(ValueError, match="needs a generator"):
        ImageTransform(8, True)(IMAGE)
