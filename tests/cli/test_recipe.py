from dataclasses import dataclass, field

import pytest

from hgkd_hf.cli.recipe import RECIPES, parse_recipe, read_recipe, recipe_value
from hgkd_hf.hub.privacy import public_command


@dataclass
class Settings:
    dataset: str
    mask_ratio: float = 0.6
    layers: list[int] = field(default_factory=lambda: [-1])
    streaming: bool = False
    student: str = "resnet-50"
    cell_size: int | None = None


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_file_sets_defaults_and_flags_win(tmp_path):
    path = write(
        tmp_path,
        "dataset: digits\nmask_ratio: 75e-2\nlayers: [-2, 10]\nstreaming: true\nstudent: {model_type: resnet}\n",
    )
    (settings,) = parse_recipe([Settings], ["--recipe", path, "--mask_ratio", "0.5", "--cell_size", "64"])
    assert settings == Settings("digits", 0.5, [-2, 10], True, '{"model_type": "resnet"}', 64)
    (settings,) = parse_recipe([Settings], [f"--recipe={path}"])
    assert settings.mask_ratio == 0.75


@pytest.mark.parametrize("flag", ["--cell_size", "--cell-size"])
@pytest.mark.parametrize("separator", [" ", "="])
def test_dashes_are_underscores_also_before_flags_are_parsed(flag, separator):
    """As to the parser itself: what is looked up before it must not miss a flag."""
    words = f"{flag}{separator}64".split()
    arguments = ["--dataset", "a", "--cell_size", "32", *words]
    assert parse_recipe([Settings], arguments)[0].cell_size == 64
    assert recipe_value("cell_size", arguments) == "64"
    place = [word.replace("cell", "output").replace("size", "dir") for word in words]
    assert public_command(["hgkd", *place, "--cell_size"]) == "hgkd --cell_size"


# Each of another error within PyYAML.
BAD_TAGS = (
    "!!int ''",
    "!!float ''",
    "!!bool x",
    "!!timestamp x",
    "!!binary é",
    "!!omap [1]",
    "9" * 5000,
    "2020-13-45",
)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "dataset: a\nmask_ration: 0.5\n",
            "has the key 'mask_ration', which no setting reads: did you mean 'mask_ratio'",
        ),
        ("dataset: a\nzzz: 1\n", "has the key 'zzz', which no setting reads."),
        ("- a\n", "must map settings to values"),
        ("dataset: [a\n", "is not readable as YAML"),
        ("dataset:\n", "gives no value for 'dataset'"),
        ("layers: [1, --push_to_hub]\n", "has '--push_to_hub' in the list of 'layers'"),
        ("dataset: a\nmask_ratio: 0.5\ndataset: b\n", "the key 'dataset' stands twice"),
        ("dataset: a\nstudent: {model_type: a, model_type: b}\n", "the key 'model_type' stands twice"),
        *((f"dataset: {value}\n", "is not readable as YAML") for value in BAD_TAGS),
        ("dataset: " + "[" * 5000, "is not readable as YAML: it is nested too deeply"),
        ("dataset: !!python/object/apply:os.system ['true']\n", "is not readable as YAML"),
    ],
)
def test_bad_recipe(tmp_path, text, match):
    with pytest.raises(ValueError, match=match):
        parse_recipe([Settings], ["--recipe", write(tmp_path, text)])


def test_value_of_the_wrong_type(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_recipe([Settings], ["--recipe", write(tmp_path, "dataset: a\nmask_ratio: much\n")])
    assert "invalid float value: 'much'" in capsys.readouterr().err


def test_missing_recipe():
    with pytest.raises(FileNotFoundError, match="there is no recipe 'nowhere.yaml'.*: give a file, or one of "):
        parse_recipe([Settings], ["--recipe", "nowhere.yaml"])
    with pytest.raises(FileNotFoundError, match="there is no recipe 'hgkd_papr'.*: did you mean hgkd_paper?"):
        parse_recipe([Settings], ["--recipe", "hgkd_papr"])


def test_recipe_of_the_package_by_name(tmp_path, monkeypatch):
    assert read_recipe("hgkd_paper") == read_recipe(RECIPES / "hgkd_paper.yaml")
    assert read_recipe("imagenet/rob_dino")["method"] == "rob"
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "dataset: mine\n")
    (tmp_path / "recipe.yaml").rename(tmp_path / "hgkd_paper")
    assert read_recipe("hgkd_paper") == {"dataset": "mine"}


def test_help_can_be_read(capsys):
    text = "Do it.\n\n    python it.py --dataset a   # an example\n    python it.py --dataset b"
    with pytest.raises(SystemExit):
        parse_recipe([Settings], ["--help"], text)
    shown = capsys.readouterr().out
    assert text in shown
    assert (shown.count("--mask_ratio"), shown.count("--mask-ratio")) == (1, 0)
