"""torchvision's CNNs as students, through `ModuleBackbone`."""

import copy
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from sparse_nets import assert_equal, build, draw_cells, run
from transformers import AutoModel

from hgkd_hf import ModuleBackboneConfig, SparseUNetConfig, SparseUNetModel, allow_code
from hgkd_hf.sparse import check_exact, sparsify
from hgkd_hf.sparse.layers import LIBRARIES
from hgkd_hf.students.features import feature_scales


def imports_torchvision() -> bool:
    """In a process of its own: an extension built for another torch may end it."""
    command = [sys.executable, "-c", "import torchvision"]
    return find_spec("torchvision") is not None and subprocess.run(command, capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not imports_torchvision(), reason="needs torchvision built for the installed torch")

# Small members of torchvision's families, and the layers that are found.
FAMILIES = {
    "resnet18": ["relu", "layer1", "layer2", "layer3", "layer4"],
    "regnet_y_400mf": ["stem", *(f"trunk_output.block{stage}" for stage in (1, 2, 3)), "trunk_output"],
    "mobilenet_v2": ["features.1", "features.3", "features.6", "features.13", "features"],
    "mobilenet_v3_small": ["features.0", "features.1", "features.3", "features.8", "features"],
    "efficientnet_b0": ["features.1", "features.2", "features.3", "features.5", "features"],
    "densenet121": ["features.relu0", *(f"features.denseblock{block}" for block in (1, 2, 3)), "features"],
    "shufflenet_v2_x0_5": ["conv1", "maxpool", "stage2", "stage3", "conv5"],
}


def config(name: str) -> ModuleBackboneConfig:
    return ModuleBackboneConfig(factory=allow_code(f"torchvision.models:{name}"))


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_found(name):
    model = AutoModel.from_config(config(name))
    assert model.config.layers == FAMILIES[name]
    assert [scale.stride for scale in feature_scales(config(name))] == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("name", FAMILIES)
def test_backends_equal_masked(name):
    net = build(config(name)).train()
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    cells = draw_cells(2, (3, 3), 0.6)
    assert_equal(run(net, images, cells, "cells"), run(net, images, cells, "masked"), 1e-9)
    net.eval()
    check_exact(net, cell_size=32)
    expected = net(images).last_hidden_state
    torch.testing.assert_close(sparsify(copy.deepcopy(net))(images).last_hidden_state, expected, rtol=0, atol=0)


def test_families_hold_every_known_layer():
    nets = [AutoModel.from_config(config(name)) for name in FAMILIES]
    known = LIBRARIES["torchvision"].keys()
    assert known == known & {type(module).__name__ for net in nets for module in net.modules()}


def test_others_learn_from_whole_images():
    name = "convnext_tiny"
    with pytest.raises(ValueError, match="cannot be made exact on visible cells"):
        check_exact(AutoModel.from_config(config(name)), cell_size=32)
    student = SparseUNetModel(SparseUNetConfig(encoder_config=config(name), decoder_width=32, use_mask_token=False))
    assert student(torch.randn(1, 3, 64, 64)).last_hidden_state.shape[2:] == (4, 4)


def test_a_student_leaves_as_torchvisions_own_state(tmp_path):
    from torchvision.models import resnet18

    student = SparseUNetModel(SparseUNetConfig(encoder_config=config("resnet18"), decoder_width=32))
    images, mask = torch.randn(2, 3, 64, 64), draw_cells(2, (2, 2), 0.5).bool_masked_pos
    student.train()(images, mask).last_hidden_state.square().mean().backward()
    assert all(p.grad.any() for name, p in student.encoder.named_parameters() if not name.startswith("module.fc."))
    student.to_native().save_pretrained(tmp_path)
    native = resnet18()
    native.load_state_dict(load_file(tmp_path / "model.safetensors"))
    native.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(native.eval()(images), student.eval().image_features(images))
