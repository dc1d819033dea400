"""The memory estimate, on networks whose figures can be counted by hand."""

import pytest
import torch
from torch import nn
from transformers.utils import ModelOutput

from hgkd_hf.data import collate
from hgkd_hf.training import memory_estimate as memory
from hgkd_hf.training.memory_estimate import MemoryEstimate, estimate_memory, free_memory, gigabytes

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """4 maps of 8x8 pixels."""

    def __init__(self, norm: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.batches = []

    def forward(self, pixel_values):
        self.batches.append(len(pixel_values))
        return ModelOutput(loss=self.norm(self.conv(pixel_values)).relu().sum())


@pytest.fixture
def samples():
    return [{"pixel_values": torch.randn(3, 8, 8), "sample_index": index} for index in range(6)]


def test_what_is_kept_for_backward_is_counted(samples):
    found = estimate_memory(Tiny(), samples, collate, CPU)
    weights = 4 * (4 * 3 * 3 * 3 + 4)
    # A convolution keeps its input, ReLU its result; a sum keeps nothing, and weights are there anyway.
    per_image = 4 * (3 * 8 * 8) + 4 * (4 * 8 * 8)
    assert found == MemoryEstimate(weights, weights, 2 * weights, 0, per_image)
    assert found.step(10) == 3 * weights + 10 * per_image


def test_frozen_weights_have_no_gradients(samples):
    model = Tiny()
    model.conv.bias.requires_grad_(False)
    found = estimate_memory(model, samples, collate, CPU)
    assert (found.weights - found.gradients, found.optimizer) == (4 * 4, 2 * found.gradients)


def test_mixed_precision_keeps_less(samples):
    full, mixed = (estimate_memory(Tiny(), samples, collate, CPU, dtype) for dtype in (None, torch.bfloat16))
    assert 0 < mixed.kept_per_image < full.kept_per_image
    assert mixed.kept > 0  # the weights' copies in the smaller type, whatever the batch


def test_the_model_stays_as_it_was(samples):
    model = Tiny(norm=True)
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    estimate_memory(model, samples[:1], collate, CPU)
    assert model.batches == [2, 4]  # of one sample too
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (model.training, model.norm.training) == (True, False)
    assert model.conv.weight.grad is None


def test_a_teacher_weighs_but_is_not_trained(hgkd):
    samples = [
        {"pixel_values": torch.randn(3, 64, 64), "bool_masked_pos": torch.arange(16).view(4, 4) > 5} for _ in range(4)
    ]
    found = estimate_memory(hgkd, samples, collate, CPU)
    own = sum(value.nbytes for value in hgkd.state_dict().values())
    assert found.weights == own + sum(value.nbytes for value in hgkd.teacher.state_dict().values())
    assert found.gradients == 4 * hgkd.num_parameters(only_trainable=True)
    assert found.kept_per_image > 3 * 64 * 64


def test_free_memory_knows_container_and_neighbours(tmp_path, monkeypatch):
    """Within the narrowest of the control groups; what they hold of files gives way and is no use of memory."""
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "PROCESS_CGROUP", tmp_path / "cgroup")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    (tmp_path / "cgroup").write_text("1:cpu:/\n0::/job/step\n")
    assert free_memory(CPU) > 10**6, "no limits"

    def group(folder, limit, used, **statistics):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in statistics.items()))

    group(tmp_path / "job" / "step", "max", 9000, anon=9000)
    assert free_memory(CPU) > 10**6
    group(tmp_path / "job", 5000, 4900, anon=1000, active_file=2000, inactive_file=1500, slab_reclaimable=400, shmem=9)
    assert free_memory(CPU) == 4000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU) == 1000
    group(tmp_path / "job" / "step", 800, 900, anon=900)
    assert free_memory(CPU) == 0


def test_in_words():
    assert (gigabytes(2_345_000_000), gigabytes(12_000)) == ("2.35 GB", "0.012 MB")
    said = MemoryEstimate(10**9, 10**8, 2 * 10**8, 10**8, 10**7).describe(64)
    assert said.startswith("about 2.04 GB a process: weights 1 GB, gradients 100 MB, optimizer 200 MB, activations")
    assert said.endswith("740 MB for 64 images")
