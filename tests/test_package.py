"""What importing the package does, and what README and Makefile promise."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

from hgkd_hf import HGKDConfig, SparseUNetConfig

REPOSITORY = Path(__file__).parents[1]


def test_import_registers_and_stays_light():
    """Nothing heavy is loaded beyond what transformers' own models load."""
    code = (
        "import sys, transformers, transformers.modeling_utils\n"
        "before = set(sys.modules)\n"
        "import hgkd_hf\n"
        "heavy = {'datasets', 'evaluate', 'sklearn', 'matplotlib', 'spconv', 'pandas', 'scipy', 'torchvision'}\n"
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().splitlines()[-1] == "[]"
    assert type(AutoConfig.for_model("sparse_unet")) is SparseUNetConfig
    assert (
        AutoConfig.for_model("hgkd", feature_weight=0, pixel_weight=1, decoder="full").model_type
        == HGKDConfig.model_type
    )


def test_version_is_of_one_place():
    from importlib.metadata import version

    import hgkd_hf

    assert version("hgkd_hf") == hgkd_hf.__version__


@pytest.mark.parametrize("path", sorted((REPOSITORY / "training/accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_files_are_known_to_accelerate(path):
    from accelerate.commands.config.config_args import ClusterConfig

    settings = yaml.safe_load(path.read_text())
    config = ClusterConfig.from_yaml_file(yaml_file=str(path))
    assert config.num_processes == settings["num_processes"]


def test_readme_commands_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_readme_names_files_that_exist():
    for path in re.findall(r"(?:training|docs|tests|examples)/[\w/]+\.\w+", (REPOSITORY / "README.md").read_text()):
        assert (REPOSITORY / path).exists(), path


def test_wheel_holds_what_the_package_reads(tmp_path):
    """Recipes, templates and the page's parts are files beside the code: a wheel without them fails only when used."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    package = tmp_path / "src" / "hgkd_hf"
    shutil.copytree(REPOSITORY / "src" / "hgkd_hf", package, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        entry_points = next(name for name in held if name.endswith("entry_points.txt"))
        assert "hgkd = hgkd_hf.cli.main:main" in archive.read(entry_points).decode()
    assert {path.relative_to(package.parent).as_posix() for path in package.rglob("*") if path.is_file()} <= held
    assert {path.suffix for path in package.rglob("*") if path.is_file()} >= {".py", ".yaml", ".md", ".html", ".js"}
