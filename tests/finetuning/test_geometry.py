import numpy as np
import pytest
import torch
from PIL import Image

from hgkd_hf.finetuning.geometry import Axis, Placement

GREY = torch.tensor([0.5, 0.5, 0.5])


def striped(width: int = 8, height: int = 4) -> tuple[Image.Image, np.ndarray]:
    """Column i has the grey level 10 i and the class i."""
    columns = np.tile(np.arange(width, dtype=np.uint8), (height, 1))
    return Image.fromarray(np.repeat(columns[..., None] * 10, 3, 2)), columns


def levels(pixels: torch.Tensor) -> list[list[int]]:
    return (pixels[0] * 255).round().int().tolist()


def test_the_whole_image_is_pillows_resize():
    image, _ = striped()
    place = Placement.whole(image, (8, 32))
    expected = np.array(image.resize((32, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(
        (place.image(image, Image.Resampling.BILINEAR, GREY) * 255).round().numpy()[0], expected[..., 0]
    )
    boxes = place.boxes(torch.tensor([[2.0, 1.0, 4.0, 3.0]]))
    assert boxes.tolist() == [[8, 2, 16, 6]]


def test_an_image_smaller_than_the_canvas_is_padded():
    image, classes = striped(3, 1)
    place = Placement(Axis(1, 2, 1.0, 1), Axis(3, 5, 1.0, 1))
    assert levels(place.image(image, Image.Resampling.NEAREST, GREY)) == [[128] * 5, [128, 0, 10, 20, 128]]
    assert place.mask(classes, 255).tolist() == [[255] * 5, [255, 0, 1, 2, 255]]
    assert place.boxes(torch.tensor([[0.0, 0.0, 3.0, 1.0]])).tolist() == [[1, 1, 4, 2]]


def test_an_image_larger_than_the_canvas_is_cut_and_mirrored():
    image, classes = striped(8, 1)
    place = Placement(Axis(1, 1, 1.0, 0), Axis(8, 4, 1.0, -3), flip=True)
    assert levels(place.image(image, Image.Resampling.NEAREST, GREY)) == [[60, 50, 40, 30]]
    assert place.mask(classes, 255).tolist() == [[6, 5, 4, 3]]
    # Column 4 of the image is at 1 of the canvas, mirrored at 2; a box that reaches out is clipped.
    boxes = place.boxes(torch.tensor([[4.0, 0.0, 5.0, 1.0], [0.0, 0.0, 4.0, 1.0]]))
    assert boxes.tolist() == [[2, 0, 3, 1], [3, 0, 4, 1]]


@pytest.mark.parametrize("scale_range", [(0.3, 0.6), (1.5, 3.0), (0.5, 2.0)])
def test_image_mask_and_boxes_stay_together(scale_range):
    """A bright rectangle, its mask and its box, through many random placements."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[10:30, 20:50] = 255
    image, box = Image.fromarray(pixels), torch.tensor([[20.0, 10.0, 50.0, 30.0]])
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        place = Placement.random(image, (64, 96), scale_range, 0.5, generator)
        bright = place.image(image, Image.Resampling.NEAREST, torch.zeros(3))[0] > 0.5
        mask = place.mask(pixels[..., 0] // 255, 9) == 1
        assert (bright ^ mask).sum() <= 0.04 * bright.numel()
        left, top, right, bottom = place.boxes(box)[0].tolist()
        assert 0 <= left <= right <= 96
        assert 0 <= top <= bottom <= 64
        if bright.any():
            rows, columns = bright.any(1).nonzero().flatten(), bright.any(0).nonzero().flatten()
            found = [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]
            assert found == pytest.approx([left, top, right, bottom], abs=2.5)


def test_the_generator_decides_alone():
    image, _ = striped()
    first, second = (
        Placement.random(image, (32, 32), (0.5, 2.0), 0.5, torch.Generator().manual_seed(7)) for _ in "ab"
    )
    assert first == second
