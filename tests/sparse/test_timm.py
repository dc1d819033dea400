"""timm's CNNs as students, through transformers' `TimmWrapperModel`."""

import copy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from sparse_nets import assert_equal, build, draw_cells, run
from torch import nn
from transformers import AutoModel, TimmWrapperConfig

from hgkd_hf import SparseUNetConfig, SparseUNetModel
from hgkd_hf.sparse import check_exact, sparsify
from hgkd_hf.students.features import feature_scales


def timm_imports() -> bool:
    """In a process of its own: an extension built for another torch may end it."""
    command = [sys.executable, "-c", "import timm"]
    return find_spec("timm") is not None and subprocess.run(command, capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not timm_imports(), reason="needs timm, and torchvision built for the installed torch")

# Small members of timm's families, with the mask cell that fits their stride.
FAMILIES = {
    "resnet10t": {},
    "resnet18d": {"zero_init_last": False},
    "resnext26ts": {},
    "seresnet18": {},
    "regnetx_002": {},
    "regnety_002": {},
    "convnext_atto": {"drop_path_rate": 0.4, "depths": [1, 1, 2, 1]},
    "convnextv2_atto": {"depths": [1, 1, 2, 1]},
    "convnextv2_atto, channels last": {"depths": [1, 1, 2, 1], "conv_mlp": False},
    "mobilenetv2_050": {},
    "mobilenetv3_small_050": {},
    "efficientnet_lite0": {},
    "efficientnet_b0": {"drop_path_rate": 0.4},
}


def config(name: str, **settings) -> TimmWrapperConfig:
    return TimmWrapperConfig(architecture=name.partition(",")[0], num_labels=2, model_args=settings or None)


@pytest.mark.parametrize("name", FAMILIES)
def test_backends_equal_masked(name):
    net = build(config(name, **FAMILIES[name])).train()
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    cells = draw_cells(2, (3, 3), 0.6)
    expected = run(net, images, cells, "masked")
    for backend in ["cells", "spconv"] if find_spec("spconv") else ["cells"]:
        assert_equal(run(net, images, cells, backend), expected, 1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_pixels_never_matter_and_no_mask_is_the_stock_network(name):
    net = build(config(name, **FAMILIES[name])).eval()
    check_exact(net, cell_size=32)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = net(images).last_hidden_state
    torch.testing.assert_close(sparsify(copy.deepcopy(net))(images).last_hidden_state, expected, rtol=0, atol=0)


def test_the_page_names_every_family():
    page = (Path(__file__).parents[2] / "docs" / "students.md").read_text()
    assert all(name.partition(",")[0] in page for name in FAMILIES)


def test_families_hold_every_known_layer():
    from hgkd_hf.sparse.layers import BLOCKS, LIBRARIES

    known = LIBRARIES["timm"].keys() | BLOCKS["timm"]
    nets = [AutoModel.from_config(config(name, **settings)) for name, settings in FAMILIES.items()]
    assert known == known & {type(module).__name__ for net in nets for module in net.modules()}


@pytest.mark.parametrize("name", ["tf_efficientnet_b0", "eca_resnet33ts", "vit_tiny_patch16_224"])
def test_what_cannot_be_exact_is_refused_by_name(name):
    with pytest.raises(ValueError, match="cannot be made exact|does not map a cell|is not exact|differs"):
        check_exact(AutoModel.from_config(config(name)), cell_size=32)


def test_a_timm_student_trains_saves_and_leaves_as_a_stock_checkpoint(tmp_path):
    encoder = config("resnet10t")
    assert [scale.stride for scale in feature_scales(encoder)] == [2, 4, 8, 16, 32]
    student = SparseUNetModel(SparseUNetConfig(encoder_config=encoder, decoder_width=32))
    images, mask = torch.randn(2, 3, 64, 64), draw_cells(2, (2, 2), 0.5).bool_masked_pos
    student.train()(images, mask).last_hidden_state.square().mean().backward()
    gradients = [p.grad for m in student.encoder.modules() if isinstance(m, nn.Conv2d) for p in m.parameters()]
    assert all(gradient is not None and gradient.any() for gradient in gradients)
    student.to_native().save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).pooler_output, student.eval().image_features(images))
