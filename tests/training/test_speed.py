"""The speed that a dry run foretells: what binds, from the measured parts; the model is left as it was."""

from contextlib import nullcontext

import pytest
import torch
from transformers.utils import ModelOutput

from hgkd_hf.data import DistillationDataset, ImageTransform, collate, load_images
from hgkd_hf.training.speed_estimate import SpeedEstimate, estimate_speed

PARTS = SpeedEstimate(read=100.0, collate=10_000.0, step=250.0, bytes_per_image=50_000.0, batch_bytes=4_000_000)


@pytest.mark.parametrize(
    ("workers", "cores", "binds", "speed"),
    [
        (0, 8, "reading, collating and the step in turns", 1 / (1 / 100 + 1 / 10_000 + 1 / 250)),
        (2, 8, "reading", 2 / (1 / 100 + 1 / 10_000)),
        (4, 8, "the step", 250),
        (8, 2, "reading", 2 / (1 / 100 + 1 / 10_000)),  # more workers than cores read no faster
    ],
)
def test_the_slowest_stage_binds(workers, cores, binds, speed):
    stages = PARTS.stages(workers, cores)
    assert min(stages, key=stages.get) == binds
    assert stages[binds] == pytest.approx(speed)
    facts = PARTS.describe(60_000, 1_000, 4, workers, cores)
    assert f"about {4 * speed:.3g} images a second on 4 process(es), bound by {binds}" in facts["speed"]
    assert facts["bytes"].startswith("50 kB an image, 50 MB a pass; ")


class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)
        self.seen = []

    def forward(self, pixel_values):
        assert pixel_values.dtype == torch.float32
        self.seen.append((len(pixel_values), self.training))
        return ModelOutput(loss=self.norm(pixel_values).relu().mean())


@pytest.mark.parametrize("rows", [1, 5])
def test_parts_are_measured_and_the_model_is_left_alone(tmp_path, rows):
    from PIL import Image

    for index in range(rows):
        Image.new("RGB", (20 + index, 20), (index, 9, 9)).save(tmp_path / f"{index}.png")
    data = DistillationDataset(load_images(tmp_path), ImageTransform(16, train=True), seed=0)
    model = Slow().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = estimate_speed(model, data, collate, torch.device("cpu"), 8, nullcontext)
    assert model.seen == [(8, True)] * 2
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.norm.weight.grad is None
    assert min(found.read, found.collate, found.step) > 0
    assert found.bytes_per_image == sorted(p.stat().st_size for p in tmp_path.glob("*.png"))[rows // 2]
    assert found.batch_bytes == 8 * (3 * 16 * 16 + 8)
