"""Multi-crop views: their sizes, what each augmentation does, and that the generator decides all of it."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from hgkd_hf.data import ImageTransform, MultiCropTransform, sample_generator
from hgkd_hf.data.augment import _turn_hue

WHOLE = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip_probability": 0.0}


def image(size: int = 32, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def apply(picture, seed=0, **fields) -> torch.Tensor:
    transform = ImageTransform(picture.width, True, **WHOLE, **fields)
    return transform(picture, torch.Generator().manual_seed(seed))


def multi_crop(**fields) -> MultiCropTransform:
    large = tuple(ImageTransform(16, True, crop_scale=(0.25, 1), blur_probability=p) for p in (1.0, 0.1))
    return MultiCropTransform(large, ImageTransform(8, True, crop_scale=(0.05, 0.25)), 3, **fields)


def test_views_and_masks():
    views = multi_crop(mask_grid=(4, 4))(image(), sample_generator(0, 0, 0, "view"))
    shapes = {name: tuple(view.shape) for name, view in views.items()}
    assert shapes == {
        "pixel_values": (2, 3, 16, 16),
        "local_pixel_values": (3, 3, 8, 8),
        "bool_masked_pos": (2, 4, 4),
    }
    assert len({tuple(view.flatten().tolist()) for view in views["local_pixel_values"]}) == 3
    assert set(MultiCropTransform((ImageTransform(16, True),))(image(), torch.Generator())) == {"pixel_values"}


def test_the_generator_decides_everything():
    transform = multi_crop(mask_grid=(4, 4))
    one, same = (transform(image(), sample_generator(1, 2, 3, "view")) for _ in range(2))
    other = transform(image(), sample_generator(1, 2, 4, "view"))
    for name in one:
        assert torch.equal(one[name], same[name])
    assert not torch.equal(one["pixel_values"], other["pixel_values"])


def test_half_of_the_masks_are_empty_and_the_others_hide_some():
    transform = multi_crop(mask_grid=(6, 6))
    masks = [transform(image(), sample_generator(0, 0, i, "view"))["bool_masked_pos"] for i in range(100)]
    hidden = torch.cat(masks).float().mean((1, 2))
    assert 70 < int((hidden == 0).sum()) < 130
    assert 0.08 < hidden[hidden > 0].min() < hidden.max() < 0.53


def test_solarisation_inverts_what_is_bright():
    before = pixels(image())
    after = apply(image(), solarize_probability=1.0)
    assert torch.equal(after, torch.where(before >= 128, 255 - before, before))
    assert torch.equal(apply(image()), before)


def test_blur_is_a_gaussian_of_a_drawn_radius():
    picture = image()
    generator = torch.Generator().manual_seed(7)
    ImageTransform(32, True, **WHOLE).random_box(32, 32, generator)
    torch.rand((), generator=generator)  # flip
    torch.rand((), generator=generator)  # whether to blur
    radius = 0.1 + 1.9 * torch.rand((), generator=generator, dtype=torch.float64).item()
    expected = pixels(picture.filter(ImageFilter.GaussianBlur(radius)))
    assert torch.equal(apply(picture, seed=7, blur_probability=1.0), expected)


def test_a_turned_hue_keeps_value_and_comes_back():
    red = Image.new("RGB", (2, 2), (200, 0, 0))
    third = np.array(_turn_hue(red, 1 / 3))[0, 0]
    assert third.argmax() == 1
    assert third.max() == 200
    assert abs(np.array(_turn_hue(_turn_hue(red, 0.25), -0.25)).astype(int) - np.array(red)).max() <= 4


def test_color_distortion_greys_a_fifth_and_leaves_a_sixth_alone():
    picture = image(4)
    before = pixels(picture)
    views = [apply(picture, seed=seed, color_distortion=1.0) for seed in range(400)]
    grey = sum(bool((view == view[:1]).all()) for view in views)
    same = sum(bool(torch.equal(view, before)) for view in views)
    assert 50 < grey < 115  # 80 expected
    assert 35 < same < 95  # 0.2 * 0.8 of 400: 64 expected


def test_refusals():
    with pytest.raises(ValueError, match="blur_probability is 2, but it must be in"):
        ImageTransform(8, True, blur_probability=2)
    with pytest.raises(ValueError, match=r"the global crops must be at least one, all of one size \(global_crops\)"):
        MultiCropTransform(())
    with pytest.raises(ValueError, match="local_crops is -1"):
        MultiCropTransform((ImageTransform(8, True),), None, -1)
