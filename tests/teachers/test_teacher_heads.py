"""Heads as the authors of DINO, iBOT, MSN and SwAV save them."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from hgkd_hf.teachers import TeacherHead


def linear_state(names: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": v for prefix, module in names.items() for name, v in module.state_dict().items()}


def norm(width: int) -> nn.BatchNorm1d:
    module = nn.BatchNorm1d(width).eval()
    for tensor in (module.running_mean, module.weight.data, module.bias.data):
        nn.init.normal_(tensor)
    nn.init.uniform_(module.running_var, 0.5, 2)
    return module


def dino(folder):
    """Weight-normalised last layer; under `teacher`, `module.`; beside it a student whose head must not be taken."""
    mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))
    last = nn.utils.parametrizations.weight_norm(nn.Linear(4, 9, bias=False))
    nn.init.normal_(last.parametrizations.weight.original0)
    state = {f"module.head.mlp.{name}": value for name, value in mlp.state_dict().items()}
    state["module.head.last_layer.weight_g"] = last.parametrizations.weight.original0.data
    state["module.head.last_layer.weight_v"] = last.parametrizations.weight.original1.data
    state["module.backbone.blocks.0.mlp.fc1.weight"] = torch.randn(3, 3)
    student = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"student": student, "teacher": state, "epoch": 3}, folder / "dino.pth")
    return "dino", folder / "dino.pth", lambda x: last(F.normalize(mlp(x), dim=1))


def msn(folder):
    """BatchNorms that share the numbers of their layers; the prototypes stand alone."""
    layers = {"fc1": nn.Linear(8, 16), "bn1": norm(16), "fc2": nn.Linear(16, 16), "bn2": norm(16)}
    layers["fc3"] = nn.Linear(16, 4)
    prototypes = torch.randn(9, 4)
    state = linear_state({f"module.fc.{name}": layer for name, layer in layers.items()})
    torch.save({"encoder": {}, "target_encoder": state, "prototypes": prototypes, "lr": 0.1}, folder / "msn.pth.tar")

    def forward(x):
        x = F.gelu(layers["bn1"](layers["fc1"](x)))
        x = layers["fc3"](F.gelu(layers["bn2"](layers["fc2"](x))))
        return F.normalize(x, dim=1) @ F.normalize(prototypes, dim=1).T

    return "msn", folder / "msn.pth.tar", forward


def swav(folder):
    """ReLU and one BatchNorm; here as safetensors."""
    mlp = nn.Sequential(nn.Linear(8, 16), norm(16), nn.ReLU(), nn.Linear(16, 4)).eval()
    prototypes = F.normalize(torch.randn(9, 4), dim=1)
    state = linear_state({"module.projection_head": mlp}) | {"module.prototypes.weight": prototypes}
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "swav.safetensors")
    return "swav", folder / "swav.safetensors", lambda x: F.normalize(mlp(x), dim=1) @ prototypes.T


@pytest.mark.parametrize("make", [dino, msn, swav])
@torch.no_grad()
def test_scores_are_those_of_the_authors_head(make, tmp_path):
    torch.manual_seed(0)
    ssl_method, path, expected = make(tmp_path)
    head = TeacherHead.from_file(path, ssl_method).train()
    assert (head.in_features, tuple(head.prototypes.shape), head.training) == (8, (9, 4), False)
    assert not any(p.requires_grad for p in head.parameters())
    features = torch.randn(5, 8)
    torch.testing.assert_close(head(features), expected(features))


def test_files_that_hold_no_head(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere.pth' \(teacher_head\)"):
        TeacherHead.from_file(tmp_path / "nowhere.pth", "dino")
    torch.save({"teacher": {"backbone.weight": torch.ones(2, 2)}}, tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match=r"holds no head of dino \(teacher_head\): give the whole checkpoint"):
        TeacherHead.from_file(tmp_path / "backbone.pth", "dino")
    with (tmp_path / "code.pth").open("wb") as file:
        pickle.dump({"teacher": print}, file, protocol=2)
    with pytest.raises(ValueError, match="holds more than tensors and plain values, and is not opened"):
        TeacherHead.from_file(tmp_path / "code.pth", "dino")
