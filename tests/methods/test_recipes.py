"""Every recipe of the package names settings that its method has, with values that its config takes."""

from pathlib import Path

import pytest
import yaml

from hgkd_hf.cli.choices import parse_method
from hgkd_hf.cli.recipe import parse_recipe
from hgkd_hf.methods.registry import METHODS
from hgkd_hf.training.teaching import TeachSettings

FOLDER = Path(__file__).parents[2] / "src" / "hgkd_hf" / "recipes"
RECIPES = sorted(path for path in FOLDER.rglob("*.yaml") if not path.name.startswith(("finetune", "teach")))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_read_by_its_method(path):
    values = yaml.safe_load(path.read_text())
    cpu = ["--bf16", "false", "--dataset", values.get("dataset", "images")]  # bf16 is refused on some machines
    method, training = parse_method(["--recipe", str(path), *cpu])
    assert type(method) is METHODS[values.get("method", "hgkd")]
    assert method.image_size == values.get("image_size", 224)
    assert training.per_device_train_batch_size == values["per_device_train_batch_size"]
    assert method.student_config().model_type in ("resnet", "vit", "deit") if hasattr(method, "ssl_method") else True


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("teach*.yaml")), ids=lambda path: path.stem)
def test_recipe_of_a_cache_fits_that_of_its_students(path):
    words = ["--recipe", str(path), "--dataset", "images", "--teacher", "facebook/dinov2-small"]
    (settings,) = parse_recipe((TeachSettings,), words, command="teach")
    settings.check()
    students = yaml.safe_load((FOLDER / path.name.replace("teach", "hgkd")).read_text())
    for name in ("teacher_layers", "teacher_dtype", "image_size"):
        assert students.get(name) == getattr(settings, name), name


def test_the_method_decides_which_settings_there_are(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: rob\ndataset: images\nnum_prototypes: 7\n")
    method, _ = parse_method(["--recipe", str(recipe)])
    assert (type(method).__name__, method.num_prototypes, method.crop_scale) == ("RoBMethod", 7, [0.25, 1.0])
    with pytest.raises(ValueError, match="has the key 'num_prototypes', which no setting reads"):
        parse_method(["--recipe", str(recipe), "--method=manifold"])
    with pytest.raises(ValueError, match=rf"method is 'simclr': choose one of {', '.join(METHODS)} \(--method"):
        parse_method(["--dataset", "images", "--method", "simclr"])
    assert type(parse_method(["--dataset", "images"])[0]).__name__ == "HGKDMethod"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--method=rob", "--blur_probability", "0.5"], "blur_probability is .*, but it must be three numbers"),
        (
            ["--method=rob", "--prototype_samples=9"],
            "prototype_samples is 9, but 1024 prototypes need at least as many",
        ),
        (["--method=msdcrd", "--mixup=0.8"], "selection 'consistent' .* needs one label an image: leave --mixup"),
        (["--method=kd", "--objective=dkd", "--cutmix=1"], "objective 'dkd' needs one label an image"),
    ],
)
def test_settings_that_do_not_go_together(arguments, match):
    with pytest.raises(ValueError, match=match):
        parse_method(["--dataset", "images", *arguments])
