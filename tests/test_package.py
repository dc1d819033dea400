"""What importing the package does, and what README and Makefile promise."""

import re
import subprocess
import sys
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
