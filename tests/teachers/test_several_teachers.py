"""Several teachers that stand as one."""

import pytest
import torch
import transformers as tf
from tiny_teachers import build, images
from torch.nn import functional as F

from hgkd_hf.checkpoints.identity import weights_digest
from hgkd_hf.teachers import CNNTeacher, PatchTeacher, SeveralMapTeachers

OTHER = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.5, 0.6, 0.7)}


def vit(name="vit", seed=0, **settings):
    return PatchTeacher(build(name, seed), name_or_path=name, **{"image_size": 64, **settings})


def cnn(**settings):
    config = tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return CNNTeacher(tf.ResNetModel(config), name_or_path="cnn", **settings)


def test_maps_are_those_of_each_in_their_order():
    """Each sees the images at its own size, with its own normalisation."""
    first, second = vit(layers=(2, -1)), vit("deit", 1, layers=(1, 3), image_size=128, **OTHER)
    both = SeveralMapTeachers([first, second])
    seen = both(images(80, 80)).feature_maps
    alone = [*first(images(80, 80)).feature_maps, *second(images(80, 80)).feature_maps]
    assert [tuple(feature_map.shape) for feature_map in seen] == [(2, 32, 4, 4)] * 4
    for feature_map, theirs in zip(seen, alone):
        torch.testing.assert_close(feature_map, F.avg_pool2d(theirs, theirs.shape[-1] // 4))
    assert both.hidden_sizes == (32, 32, 32, 32)
    assert (both.grid, both.name_or_path, both.image_size) == ((4, 4), ["vit", "deit"], [(64, 64), (128, 128)])
    assert both.num_parameters() == first.num_parameters() + second.num_parameters()


def test_what_is_hidden_is_hidden_from_all():
    mask = torch.zeros(2, 2, 2, dtype=torch.bool)
    mask[:, 0, 0] = True
    both = SeveralMapTeachers([vit(teacher_input="visible"), vit("deit", teacher_input="visible", image_size=128)])
    for feature_map in both(images(64, 64), mask).feature_maps:
        assert (feature_map[..., :2, :2] == 0).all()
        assert (feature_map[..., 2:, :] != 0).any(1).all()


def test_a_cnn_and_a_vit_teach_together():
    both = SeveralMapTeachers([vit(), cnn(image_size=64)])
    assert [tuple(feature_map.shape) for feature_map in both(images(64, 64)).feature_maps] == [
        (2, 32, 4, 4),
        (2, 16, 4, 4),
    ]


def test_they_stay_frozen():
    both = SeveralMapTeachers([vit(), vit("deit")]).train()
    assert not any(module.training for teacher in both.teachers for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in both.parameters())


def test_another_second_teacher_has_another_digest():
    digests = {weights_digest(SeveralMapTeachers([vit(seed=0), vit(seed=seed)])) for seed in (0, 1, 1)}
    assert len(digests) == 2


@pytest.mark.parametrize("size", [96, (128, 80)], ids=str)
def test_grids_that_do_not_go_together_are_refused(size):
    with pytest.raises(ValueError, match=r"tokens of the teacher 'deit' are not a multiple of the \(4, 4\) of 'vit'"):
        SeveralMapTeachers([vit("deit", image_size=size), vit()])
