"""A teacher answers in the student's classes, found by their names, or one sentence has both lists."""

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from hgkd_hf.methods.kd.modeling import KDConfig, KDForImageClassification
from hgkd_hf.methods.manifold.modeling import ManifoldDistillationConfig, ManifoldDistillationForImageClassification
from hgkd_hf.methods.msdcrd.modeling import MSDCRDConfig, MSDCRDForImageClassification
from hgkd_hf.teachers import ClassifierTeacher

CNN = {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 1, 1], "layer_type": "basic"}
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BUILDS = {
    "kd": lambda teacher, config: KDForImageClassification(KDConfig.for_teacher(teacher, config)),
    "dkd": lambda teacher, config: KDForImageClassification(KDConfig.for_teacher(teacher, config, objective="dkd")),
    "manifold": lambda teacher, config: ManifoldDistillationForImageClassification(
        ManifoldDistillationConfig.for_teacher(teacher, config, student_layers=(3,))
    ),
    "msdcrd": lambda teacher, config: MSDCRDForImageClassification(MSDCRDConfig.for_teacher(teacher, config)),
}


def config(*names: str) -> ResNetConfig:
    return ResNetConfig(**CNN, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})


def teacher(*names: str, layers=(-1,)) -> ClassifierTeacher:
    torch.manual_seed(2)
    model = ResNetForImageClassification(config(*names))
    torch.nn.init.normal_(model.classifier[1].weight)
    return ClassifierTeacher(model, layers=layers, image_size=64, name_or_path="tiny")


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(
    ("known", "wanted", "numbers"),
    [
        (("cat", "dog"), ("cat", "dog"), [0, 1]),
        (("cat", "dog"), ("dog", "cat"), [1, 0]),
        (("ant", "bee", "cat", "dog"), ("dog", "bee"), [3, 1]),
        (("LABEL_0", "LABEL_1"), ("cat", "dog"), [0, 1]),
    ],
)
def test_the_teachers_classes_are_the_students(build, known, wanted, numbers):
    taught = teacher(*known)
    whole = taught(IMAGES).logits
    regions = taught.classify(torch.ones(2, 24))
    model = BUILDS[build](taught, config(*wanted)).attach_teacher(taught)
    assert torch.equal(model.teacher(IMAGES).logits, whole[:, numbers])
    assert torch.equal(model.teacher.classify(torch.ones(2, 24)), regions[:, numbers])
    assert taught.num_labels == len(wanted)
    assert model(IMAGES, torch.tensor([0, 1])).loss.isfinite()


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(
    ("known", "wanted", "match"),
    [
        (("cat", "dog"), ("bus", "car"), r"but the student has the classes 'bus', 'car', but the teacher has 'cat', "),
        (("cat",), ("cat", "dog"), r"but the teacher does not know 'dog' of the student's classes: it has 'cat'"),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("cat", "dog"), "has 2 classes and the teacher 3, and not both name them"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(build, known, wanted, match):
    taught = teacher(*known)
    with pytest.raises(ValueError, match=match):
        BUILDS[build](taught, config(*wanted)).attach_teacher(taught)


def test_features_alone_need_no_classes():
    taught = teacher("cat", "dog", "cow")
    model = KDForImageClassification(KDConfig.for_teacher(taught, config("bus", "car"), objective="hint"))
    assert model.attach_teacher(taught)(IMAGES, torch.tensor([0, 1])).loss.isfinite()
    assert taught.num_labels == 3


def test_one_teacher_may_teach_students_of_any_order_one_after_the_other():
    taught = teacher("ant", "bee", "cat")
    whole = taught(IMAGES).logits
    for wanted, numbers in ((("cat", "ant"), [2, 0]), (("bee", "cat"), [1, 2]), (("ant", "bee", "cat"), [0, 1, 2])):
        BUILDS["kd"](taught, config(*wanted)).attach_teacher(taught)
        assert torch.equal(taught(IMAGES).logits, whole[:, numbers])
