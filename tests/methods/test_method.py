"""What commands build for every method: a dry run, and students that start from their own weights."""

from itertools import chain

import pytest
import torch
from contract import settings_of
from transformers import AutoModel, ConvNextConfig, ViTConfig

from hgkd_hf.cli import distill
from hgkd_hf.methods.base.settings import as_list
from hgkd_hf.methods.registry import METHODS

SIZES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 16}


def method_of(name, world, student, **settings):
    settings = settings_of(name, world) | {"student": str(student), "student_pretrained": True, **settings}
    return METHODS[name](**settings)


@pytest.mark.parametrize("name", METHODS)
def test_dry_run(name, world, tmp_path):
    """Of every method: nothing is fitted yet, and nothing is written."""
    settings = settings_of(name, world) | {"per_device_train_batch_size": 4, "num_train_epochs": 3}
    settings |= {"output_dir": tmp_path / "run", "report_to": "none"}
    words = ((f"--{key}", *map(str, as_list(value))) for key, value in settings.items())
    assert distill.main([*chain.from_iterable(words), "--dry_run"])["steps"] == 6
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in METHODS if name != "coadvise"])  # whose student is a ViT
def test_a_cnn_of_another_image_size_starts_from_its_weights(name, world, tmp_path):
    """ConvNeXt's config has a `patch_size` and an `image_size`, as a ViT's, but it takes any image."""
    config = ConvNextConfig(**SIZES, image_size=224)
    saved = AutoModel.from_config(config)
    saved.save_pretrained(tmp_path)
    encoder = method_of(name, world, tmp_path).build_model().encoder
    for key, value in saved.state_dict().items():
        assert torch.equal(encoder.state_dict()[key], value), key


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("hgkd", "rcmae")])  # whose student is a CNN
def test_a_vit_of_another_image_size_is_refused(name, world, tmp_path):
    AutoModel.from_config(ViTConfig(**VIT, image_size=32)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"image_size is 64, but the pre-trained student .* was made for 32: set"):
        method_of(name, world, tmp_path).build_model()


@pytest.mark.parametrize("setting", ["color_jitter", "color_distortion", "blur_probability"])
def test_hgkds_crops_are_coloured_as_asked(setting, world, tmp_path):
    """The same crop in other colours or blurred; without the setting nothing else is drawn."""
    AutoModel.from_config(ConvNextConfig(**SIZES)).save_pretrained(tmp_path)

    def pixels(**settings) -> torch.Tensor:
        method = method_of("hgkd", world, tmp_path, **settings)
        return method.training_data(method.build_model(), 0, None)[5]["pixel_values"]

    plain, changed = pixels(), pixels(**{setting: 1.0})
    assert torch.equal(plain, pixels(**{setting: 0.0}))
    assert not torch.equal(plain, changed)
    with pytest.raises(ValueError, match=rf"{setting} is 1\.5, but it must be"):
        method_of("hgkd", world, tmp_path, **{setting: 1.5})
