"""Gradient checkpointing of students: same losses, gradients and running statistics, less kept for backward."""

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import ConvNextV2Config, MobileNetV2Config, RegNetConfig, ResNetConfig

from hgkd_hf import SparseUNetConfig, SparseUNetModel, random_cell_mask
from hgkd_hf.sparse.checkpointing import CheckpointedBlock

ENCODERS = {
    "resnet": ResNetConfig(embedding_size=16, hidden_sizes=[16, 24, 32, 40], depths=[2, 2, 1, 1], layer_type="basic"),
    "regnet": RegNetConfig(embedding_size=16, hidden_sizes=[16, 24, 32, 40], depths=[1, 2, 1, 1], groups_width=8),
    "convnextv2": ConvNextV2Config(hidden_sizes=[16, 24, 32, 40], depths=[1, 2, 1, 1]),
    "mobilenet_v2": MobileNetV2Config(depth_multiplier=0.35, tf_padding=False),
}


def backward(model: SparseUNetModel, images: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, int]:
    """The output, and the bytes of the tensors kept for backward; gradients are left on the model."""
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor):
        output = model(images, mask).last_hidden_state
    output.square().mean().backward()
    return output.detach(), sum(kept)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("masked", [True, False], ids=("masked", "dense"))
def test_checkpointing_changes_nothing_but_memory(name, masked):
    torch.manual_seed(0)
    plain = SparseUNetModel(SparseUNetConfig(encoder_config=ENCODERS[name], decoder_width=32)).double().train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.activation_checkpointing_enable()
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    mask = torch.stack([random_cell_mask((3, 3), 0.6) for _ in images]) if masked else None
    expected, kept = backward(plain, images, mask)
    output, kept_less = backward(checkpointed, images, mask)
    torch.testing.assert_close(output, expected)
    assert kept_less < 0.7 * kept
    for (parameter_name, ours), theirs in zip(checkpointed.named_parameters(), plain.parameters()):
        if theirs.grad is None:
            assert ours.grad is None, parameter_name
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, n=parameter_name: f"{n}: {m}")
    for (buffer_name, ours), theirs in zip(checkpointed.named_buffers(), plain.buffers()):
        torch.testing.assert_close(ours, theirs, msg=lambda m, n=buffer_name: f"{n}: {m}")


def test_the_published_student_knows_nothing_of_it():
    model = SparseUNetModel(SparseUNetConfig(encoder_config=ENCODERS["resnet"], decoder_width=32))
    model.activation_checkpointing_enable()
    assert any(isinstance(module, CheckpointedBlock) for module in model.encoder.modules())
    for module in model.to_native().modules():
        assert type(module).__module__.startswith(("torch.", "transformers.")), type(module)
        assert not hasattr(module, "gradient_checkpointing")
