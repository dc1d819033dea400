"""Any module as a student: its maps, its own names of weights, and no code that nobody has named."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

from hgkd_hf import (
    HGKDConfig,
    HGKDForPreTraining,
    ModuleBackbone,
    ModuleBackboneConfig,
    SparseUNetConfig,
    SparseUNetModel,
    allow_code,
)
from hgkd_hf.sparse import check_exact
from hgkd_hf.students.code import NetworkError
from hgkd_hf.students.features import feature_scales
from hgkd_hf.students.presets import student_encoder_config, student_weights


class Block(nn.Module):
    """Half the resolution, and a residual."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.down = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.mix = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x):
        x = self.bn(self.down(x)).relu()
        return x + self.mix(x)


class Detector(nn.Module):
    """A YOLO in small: a backbone by number, and a head that a student does not need."""

    def __init__(self, width: int = 8):
        super().__init__()
        widths = [3, width, 2 * width, 4 * width]
        self.model = nn.ModuleList(Block(before, after) for before, after in pairwise(widths))
        self.head = nn.Linear(4 * width, 5)

    def forward(self, x):
        for block in self.model:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Scaled(Detector):
    """Has a buffer that no file holds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)

    def forward(self, x):
        return super().forward(x * self.scale)


class Leaky(Detector):
    """Looks at the whole image between its blocks."""

    def __init__(self):
        super().__init__()
        self.model.append(nn.Sequential(nn.Upsample(scale_factor=0.5)))


def number():
    return 3


CELL = 8


@pytest.fixture
def config() -> ModuleBackboneConfig:
    return ModuleBackboneConfig.for_factory(Detector)


def test_layers_are_found_and_the_head_is_left_alone(config):
    model = AutoModel.from_config(config)
    assert model.config.layers == ["model.0", "model.1", "model.2"]
    assert feature_scales(config) == ((0, 8, 2), (1, 16, 4), (2, 32, 8))
    images = torch.randn(2, 3, 32, 48)
    output = model(images, output_hidden_states=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6)]
    x = images
    for block, state in zip(model.module.model, output.hidden_states):
        x = block(x)
        torch.testing.assert_close(state, x)
    output.last_hidden_state.sum().backward()
    untrained = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert untrained == {"module.head.weight", "module.head.bias"}
    assert not model.module.head.weight.requires_grad  # DDP would wait for its gradient


def test_named_layers_are_taken():
    layers = ["model.1.bn", "model.2"]
    model = AutoModel.from_config(ModuleBackboneConfig.for_factory(Detector, width=4))
    named = ModuleBackbone(ModuleBackboneConfig(factory=model.config.factory, arguments={"width": 4}, layers=layers))
    named.load_state_dict(model.state_dict())
    images, states = torch.randn(1, 3, 32, 32), {}
    named.eval().module.model[1].bn.register_forward_hook(lambda module, inputs, output: states.update(bn=output))
    torch.testing.assert_close(named(images, output_hidden_states=True).hidden_states[0], states["bn"])


def test_saved_under_its_own_names(tmp_path):
    """Native code loads the file; so does this package, with buffers that no file holds."""
    torch.manual_seed(3)
    model = AutoModel.from_config(ModuleBackboneConfig.for_factory(Scaled)).eval()
    model.save_pretrained(tmp_path)
    own = Scaled().eval()
    own.load_state_dict(load_file(tmp_path / "model.safetensors"))
    images = torch.randn(1, 3, 32, 32)
    expected = model(images).last_hidden_state
    torch.testing.assert_close(own.model[2](own.model[1](own.model[0](images * 0.5))), expected)
    state = torch.get_rng_state()
    loaded, loading = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] | loading["unexpected_keys"]
    torch.testing.assert_close(loaded.eval()(images).last_hidden_state, expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.6])
def test_it_learns_by_hgkd(config, teacher, mask_ratio, tmp_path):
    """With and without a mask; the whole student is saved and loaded, and leaves under the module's own names."""
    check_exact(AutoModel.from_config(config), CELL)
    student = SparseUNetConfig(encoder_config=config, cell_size=16, decoder_width=32)
    model = HGKDForPreTraining(HGKDConfig.for_teacher(teacher, student, image_size=64, mask_ratio=mask_ratio))
    model.attach_teacher(teacher).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(12):
        loss = model(images, torch.rand(4, 4, 4).argsort(-1) < 2 if mask_ratio else None).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    model.eval().student.save_pretrained(tmp_path / "whole")
    loaded = SparseUNetModel.from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(loaded(images).last_hidden_state, model.student(images).last_hidden_state)
    model.to_native().save_pretrained(tmp_path / "native")
    native = Detector()
    native.load_state_dict(load_file(tmp_path / "native/model.safetensors"))
    assert torch.equal(native.model[0].down.weight, model.encoder.module.model[0].down.weight)
    assert type(model.to_native().module.model[0]) is Block


def test_what_no_mask_can_follow_learns_from_whole_images():
    config = ModuleBackboneConfig.for_factory(Leaky)
    with pytest.raises(ValueError, match=r"module 'module.model.3.0' \(Upsample\) cannot be made exact"):
        SparseUNetModel(SparseUNetConfig(encoder_config=config, decoder_width=32))
    student = SparseUNetModel(SparseUNetConfig(encoder_config=config, decoder_width=32, use_mask_token=False))
    assert student(torch.randn(1, 3, 64, 64)).last_hidden_state.shape == (1, 16, 8, 8)


def test_no_code_that_nobody_has_named(tmp_path):
    """Neither a config, nor a checkpoint, nor a student's name runs a function; `os:getcwd` stands for any."""
    config = ModuleBackboneConfig(factory="os:getcwd")
    as_json = json.dumps({"model_type": "module_backbone", "factory": "os:getcwd"})
    save_file({}, tmp_path / "model.safetensors")
    refused = r"built by 'os:getcwd', which is code: if you trust it, .*--allow_code os:getcwd"
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["ModuleBackbone"]}))
    for attempt in (
        lambda: AutoModel.from_config(config),
        lambda: AutoModel.from_pretrained(tmp_path),
        lambda: SparseUNetConfig(encoder_config=config.to_dict()),
        lambda: feature_scales(student_encoder_config("os:getcwd")),
        lambda: feature_scales(student_encoder_config(as_json)),
    ):
        with pytest.raises(NetworkError, match=refused):
            attempt()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("resnet18", "'resnet18' is no import path: give package.module:function"),
        ("no_such_package:net", "cannot be imported: No module named 'no_such_package'"),
        ("torch.nn:Nothing", "cannot be imported: module 'torch.nn' has no attribute 'Nothing'"),
        ("math:pi", "'math:pi' is a float, but must build a network"),
    ],
)
def test_wrong_paths_are_one_sentence(path, message):
    with pytest.raises(NetworkError, match=message):
        allow_code(path)


@pytest.mark.parametrize(
    ("factory", "fields", "message"),
    [
        (number, {}, "gave a int, but must give an nn.Module"),
        (Detector, {"arguments": {"depth": 3}}, "failed with the arguments {'depth': 3}: .*unexpected keyword"),
        (Detector, {"layers": ["stem"]}, "has no module 'stem': choose layers from model, head"),
        (Detector, {"layers": ["model.2", "head"]}, "the module 'head' .* gives no feature map"),
    ],
)
def test_wrong_networks_are_one_sentence(factory, fields, message):
    with pytest.raises(NetworkError, match=message):
        feature_scales(ModuleBackboneConfig(factory=allow_code(factory), **fields))


def test_weights_of_a_function_are_its_own_affair():
    with pytest.raises(ValueError, match="is built by a function: leave --student_pretrained out"):
        student_weights("torchvision.models:resnet18")
