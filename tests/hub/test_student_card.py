"""The card of a student: what it tells, and that nothing in it can break it."""

import ast
import json
import re
from dataclasses import dataclass, field

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from transformers import AutoConfig, ResNetConfig, ResNetForImageClassification, ResNetModel, TrainingArguments

from hgkd_hf.hub import readme, student_image_processor, write_student_folder
from hgkd_hf.hub.folder import describe_model, write_card
from hgkd_hf.hub.papers import METHOD_NOTES, method_of
from hgkd_hf.hub.sources import License, Source
from hgkd_hf.hub.student_card import StudentCard
from hgkd_hf.methods.hgkd.method import HGKDMethod
from hgkd_hf.methods.kd.modeling import KDConfig, KDForImageClassification
from hgkd_hf.methods.registry import METHODS

from . import cards

SHA = "0123456789" * 4
HOSTILE = (
    'x"]\n---\nlicense: mit\n---\n# owned <script>alert(1)</script> | ![a](b) ``` </details> {{ 7*7 }} '
    "<!-- hgkd_hf: end -->"
)


@pytest.fixture
def card() -> StudentCard:
    return StudentCard(
        name="tiny",
        method="hgkd",
        student="ResNetModel",
        parameters=11_200_000,
        has_decoder=True,
        teachers=[Source("alice/teacher", on_hub=True, revision=SHA, license=License("mit"))],
        dataset=Source("alice/dots", on_hub=True, revision=SHA[::-1], license=License("cc0-1.0")),
        description={"mask": "6 of 16 cells", "objective": "feature 1.0, pixel 0.0"},
        distillation={"mask_ratio": 0.6, "teacher_layers": [10], "teacher_revision": SHA, "teacher_grid": None},
        data={"split": "train", "images": 24, "fingerprint": "abc", "evaluation_split": "test"},
        results={
            "before training": {"knn_accuracy": 0.25, "feature_rank": 3.0},
            "this student": {"knn_accuracy": 0.5, "feature_rank": 4.25},
            "SparK, same steps": {"knn_accuracy": 0.375},
        },
        protocol={"knn_accuracy": "20 nearest, temperature 0.07"},
        settings={"mask_ratio": 0.6, "seed": 1, "student": "resnet-18"},
        changed=["seed", "student"],
        run={"steps": 200, "images_seen": 12_800, "seconds": 3.5, "hardware": "CPU x", "co2_grams": 1.5},
        versions={"torch": "2.13.0"},
        command="accelerate launch training/distill.py --seed 1",
        license=License("mit"),
        license_reason="that of alice/teacher",
    )


def test_metadata(card):
    metadata, _ = readme.split(card.render("alice/tiny"))
    result = metadata.pop("model-index")[0]
    assert metadata == {
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "image-feature-extraction",
        "metrics": ["accuracy"],
        "datasets": ["alice/dots"],
        "tags": [
            *("hgkd-hf", "hgkd", "masked-image-modeling", "sparse-convolution", "knowledge-distillation", "distilled"),
            *("teacher:alice/teacher", "arxiv:2309.09571"),
        ],
        "distillation": {
            "method": "H-GKD",
            "teacher": "alice/teacher",
            "teacher_revision": SHA,
            "mask_ratio": 0.6,
            "teacher_layers": [10],
        },
        "co2_eq_emissions": {
            "emissions": 1.5,
            "source": "codecarbon",
            "training_type": "pre-training",
            "hardware_used": "CPU x",
        },
    }
    assert result["name"] == "tiny"
    (found,) = result["results"]
    assert found["dataset"] == {"type": "alice/dots", "name": "alice/dots", "split": "test", "revision": SHA[::-1]}
    assert found["metrics"] == [
        {
            "type": "accuracy",
            "value": 0.5,
            "name": "kNN accuracy",
            "args": {"protocol": "20 nearest, temperature 0.07"},
        }
    ]


def test_the_hub_accepts_it_and_a_reader_gets_every_key_back(card):
    text = card.render("alice/tiny")
    assert cards.validate(text, "model") == ([], [])
    loaded = ModelCard(text)
    assert loaded.data.to_dict() == yaml.safe_load(text.split("---\n")[1])
    assert loaded.data.eval_results[0].metric_value == 0.5


def test_result_file(card):
    ((name, text),) = card.result_files().items()
    assert name == ".eval_results/dots.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.value, entry.dataset_revision) == ("alice/dots", 0.5, SHA[::-1])
    assert entry.notes == "kNN accuracy: 20 nearest, temperature 0.07"
    card.dataset = Source("dots")
    assert card.result_files() == {}


def test_body_tells_all(card):
    body = readme.split(card.render("alice/tiny"))[1]
    for text in (
        "A ResNetModel of 11.2 M parameters, trained by H-GKD from the teacher `alice/teacher`",
        'AutoModel.from_pretrained("alice/tiny")',
        'SparseUNetModel.from_pretrained("alice/tiny", subfolder="sparse_unet")',
        "| | kNN accuracy | effective rank of the features |\n| --- | ---: | ---: |\n",
        "| before training | 0.25 | 3 |\n| this student | 0.5 | 4.25 |\n| SparK, same steps | 0.375 |  |\n",
        "kNN accuracy: 20 nearest, temperature 0.07.",
        "| mask | 6 of 16 cells |\n| objective | feature 1.0, pixel 0.0 |",
        f"| teacher's source | alice/teacher, commit {SHA} |",
        f"alice/dots, commit {SHA[::-1]}, split train, images 24, fingerprint abc",
        "| seconds | 3.5 |",
        "not the default:\n\n```yaml\nseed: 1\nstudent: resnet-18\n```",
        "```yaml\nmask_ratio: 0.6\nseed: 1\nstudent: resnet-18\n```\n\n</details>",
        "accelerate launch training/distill.py --seed 1",
        "independent reading of the paper's abstract",
        "It saw 12,800 images in 200 steps",
        "mit: that of alice/teacher.\n`alice/teacher` is under mit.",
        "eprint        = {2309.09571}",
    ):
        assert text in body, text
    assert "co2" in body


def test_a_card_that_knows_nothing_renders_too():
    metadata, body = readme.split(StudentCard().render())
    assert metadata == {
        "library_name": "transformers",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["hgkd-hf"],
        "distillation": {"method": "distillation"},
    }
    assert "The run measured none." in body
    assert "Not settled: nobody has chosen one." in body


def test_spark_has_no_teacher_and_a_start_is_the_base_model(card):
    card.method, card.teachers = "spark", []
    card.start = Source("alice/resnet", on_hub=True, revision=SHA, license=License("mit"))
    metadata = card.metadata()
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("alice/resnet", "finetune")
    assert not {"knowledge-distillation", "distilled"} & set(metadata["tags"])
    assert "without a teacher" in card.render()


def test_classifier(card):
    card.method, card.num_classes, card.student = "kd", 10, "ResNetForImageClassification"
    text = card.render("alice/tiny")
    assert ModelCard(text).data.pipeline_tag == "image-classification"
    assert "AutoModelForImageClassification.from_pretrained" in text
    assert "answers with one of them" in text


@pytest.mark.parametrize("field_name", ["name", "method", "student", "command", "commit", "license_reason"])
def test_hostile_field(card, field_name):
    setattr(card, field_name, HOSTILE)
    check_hostile(card)


def test_hostile_names_everywhere(card):
    card.teachers = [Source(HOSTILE)]
    card.dataset = Source(HOSTILE)
    card.description = {HOSTILE: HOSTILE}
    card.settings, card.changed = {HOSTILE: HOSTILE, "classes": [HOSTILE]}, ["classes"]
    card.results["this student"] |= {HOSTILE: 1.0}
    card.results[HOSTILE] = {"knn_accuracy": 0.1}
    card.run["hardware"] = card.data["split"] = card.versions["torch"] = card.protocol["knn_accuracy"] = HOSTILE
    card.distillation["student"] = HOSTILE
    card.license = License("other", HOSTILE, HOSTILE)
    card.tags = [HOSTILE]
    card.pictures = {"a b.png": HOSTILE}
    check_hostile(card)


def check_hostile(card: StudentCard) -> None:
    text = card.render("alice/tiny")
    errors, _ = cards.validate(text, "model")
    assert not errors
    metadata, body = readme.split(text)
    assert metadata == card.metadata()  # nothing ended the block early
    prose, fenced = [], ""
    for line in body.splitlines():
        if re.fullmatch("```+[^`]*", line) and not fenced:
            fenced = line[: len(line) - len(line.lstrip("`"))]
        elif fenced and line == fenced:
            fenced = ""
        elif not fenced:
            prose.append(line)
    assert not fenced
    prose = re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", "\n".join(prose))  # without inline code
    assert not re.search(r"<(script|!--)|!\[a\]", prose.replace(readme.BEGIN, "").replace(readme.END, ""))
    assert prose.count("</details>") == 1
    assert "\n# owned" not in prose
    assert "49" not in prose
    assert readme.outside(readme.merge(StudentCard().render(), text + "\nMine\n")) == "Mine"


def test_json_round_trip(card, tmp_path):
    card.save(tmp_path / "card.json")
    assert StudentCard.load(tmp_path / "card.json") == card
    assert StudentCard.load(tmp_path / "card.json").render("a/b") == card.render("a/b")


def test_bad_json_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="it is written by a run when it ends"):
        StudentCard.load(tmp_path / "card.json")
    for content, said in (("{", "is not a model card's data"), ('{"nmae": 1}', "has no field 'nmae'")):
        (tmp_path / "card.json").write_text(content)
        with pytest.raises(ValueError, match=said):
            StudentCard.load(tmp_path / "card.json")


def test_paths_and_tokens_do_not_get_into_it(card, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted_token")
    card.settings = {"dataset": "/data/my sets/dots", "hub_token": "hf_planted_token", "output_dir": "/home/me/run"}
    card.description = {"data": "/data/my sets/dots, split train", "teacher": "/models/vit, 3 M"}
    card.command = "distill.py --dataset '/data/my sets/dots' --hub_token hf_planted_token"
    for text in (json.dumps(card.to_dict()), card.render()):
        assert "planted" not in text
        assert "/data" not in text
        assert "/models" not in text
        assert "/home" not in text
    assert card.to_dict()["description"] == {"data": "dots, split train", "teacher": "vit, 3 M"}


@dataclass
class Settings:
    needed: str
    ratio: float = 0.6
    layers: list[int] = field(default_factory=lambda: [-1])
    resume: bool = False


def test_settings_that_are_not_the_default(tmp_path):
    card = StudentCard()
    card.add_settings(Settings("a", layers=[-1], ratio=0.5, resume=True))
    assert card.settings == {"needed": "a", "ratio": 0.5, "layers": [-1]}
    assert card.changed == ["needed", "ratio"]
    card.add_settings(TrainingArguments(output_dir=str(tmp_path), seed=7, hub_token="hf_x"))
    assert card.changed[2:] == ["seed"]
    assert card.settings["learning_rate"] == 5e-5
    assert "output_dir" not in card.settings
    assert "hub_token" not in card.settings


def test_defaults_that_depend_on_other_settings():
    card = StudentCard()
    card.add_settings(HGKDMethod(dataset="dots", pixel_weight=1.0, decoder="full"))
    assert (card.settings["mask_ratio"], card.settings["low_resolution_share"]) == (0.6, 0.0)
    assert card.changed == ["dataset", "decoder", "pixel_weight"]
    card = StudentCard()
    card.add_settings(HGKDMethod(dataset="dots", low_resolution_share=0.3))
    assert card.settings["mask_ratio"] == 0.0
    assert card.changed == ["dataset", "low_resolution_share"]


@pytest.mark.parametrize(("mask_ratio", "masked"), [(0.6, True), (0.0, False)])
def test_what_it_saw_is_told_as_it_was(card, mask_ratio, masked):
    card.distillation["mask_ratio"] = mask_ratio
    metadata, text = readme.split(card.render())
    assert ("It saw only some cells of each image" in text) == masked
    assert ("masked-image-modeling" in metadata["tags"]) == ("sparse-convolution" in metadata["tags"]) == masked


def test_license_asked_for_wins_then_the_readmes_then_the_derived(card):
    card.settle_license(License("gpl-3.0"), License("wtfpl"))
    assert (card.license, card.license_reason) == (License("gpl-3.0"), "chosen by its publisher")
    card.settle_license(None, License("wtfpl"))
    assert (card.license, card.license_reason) == (License("wtfpl"), "set in its README")
    card.settle_license(None, License("mit"))
    assert card.license == License("mit")
    assert card.license_reason.startswith("that of alice/teacher")
    card.license, card.dataset = None, Source("dots")
    card.settle_license()
    assert card.license is None
    assert card.license_reason == "the licence of dots is not known"


def test_methods():
    assert method_of({"model_type": "hgkd", "feature_weight": 1.0}) == "hgkd"
    assert method_of({"model_type": "hgkd", "feature_weight": 0.0}) == "spark"
    assert method_of({"model_type": "kd", "objective": "dkd"}) == "dkd"
    for method in ("hgkd", "msdcrd"):
        assert "independent reading of the paper's abstract" in METHOD_NOTES[method].reading


def test_every_distiller_has_a_note():
    for method in METHODS.values():
        kind = method.model_class.config_class.model_type
        assert method_of(AutoConfig.for_model(kind).to_dict()) in METHOD_NOTES


@pytest.mark.parametrize("method", METHOD_NOTES)
def test_what_it_is_takes_three_sentences(card, method):
    card.method = method
    body = readme.split(card.render())[1]
    said = body.split("# tiny\n")[1].split("## Use")[0]
    assert len(re.findall(r"\.(?=\s)", said)) == 3, said


def test_rendering_asks_nobody(card, tmp_path, monkeypatch):
    def connect(*args):
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.socket.connect", connect)
    write_card(tmp_path, card)
    assert (tmp_path / "README.md").read_text() == card.render()
    assert (tmp_path / ".eval_results" / "dots.yaml").is_file()


@pytest.mark.parametrize("classes", [None, {0: HOSTILE, 1: "cat\n- dog: |", 2: "`*_<b>"}])
def test_snippet_runs_and_class_names_break_nothing(card, tmp_path, classes):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=classes)
    model = (ResNetModel if classes is None else ResNetForImageClassification)(config)
    folder = write_student_folder(model, tmp_path, student_image_processor(32, (0.5,) * 3, (0.5,) * 3), card)
    check_hostile(card)
    snippet = card.render(str(folder)).split("```python\n")[1].split("```")[0]
    scope: dict = {}
    exec(snippet, scope)
    if classes is None:
        assert scope["features"].shape == (1, 16, 4, 4)
    else:
        assert scope["label"] in classes.values()


def test_classes_of_a_distiller_are_no_part_of_its_description():
    student = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], id2label={0: HOSTILE, 1: "b"})
    card = StudentCard()
    describe_model(card, KDForImageClassification(KDConfig(student_config=student, objective="labels")))
    assert (card.method, card.num_classes) == ("labels", 2)
    assert HOSTILE not in str(card.distillation)
    check_hostile(card)


def test_a_path_that_is_no_text(card, tmp_path):
    card.settings["dataset"] = b"/data/\xff-sets".decode(errors="surrogateescape")
    card.save(tmp_path / "card.json")
    assert StudentCard.load(tmp_path / "card.json").settings["dataset"] == "?-sets"
    assert "?-sets" in card.render()


@pytest.mark.parametrize("name", ["k", "class", "", "x), print('run'), f(y", "a\nimport os\nb", "```\nrm ~\n```"])
def test_arguments_of_a_network_are_no_code(name):
    card = StudentCard(network={"factory": "a.b:f.g", "arguments": {name: "v'\n", "z": 1}})
    call = ast.parse(card.network_code).body[2].value
    assert (call.func.value.id, call.func.attr, call.args) == ("f", "g", [])
    given = {}
    for keyword in call.keywords:
        value = ast.literal_eval(keyword.value)
        given |= value if keyword.arg is None else {keyword.arg: value}
    assert given == {name: "v'\n", "z": 1}


@pytest.mark.parametrize("factory", [None, "", "f", "a:f(1)", "a\nimport os:f", "a:f\n```", "os;x:f", 3])
def test_a_card_whose_network_is_no_function_is_refused(tmp_path, factory):
    (tmp_path / "card.json").write_text(json.dumps({"network": {"factory": factory, "arguments": {}}}))
    with pytest.raises(ValueError, match="not a model card's data: its network's factory .* not an import"):
        StudentCard.load(tmp_path / "card.json")
