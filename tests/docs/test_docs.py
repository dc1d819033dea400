"""README and docs do what they say: Python blocks run, commands exist with their flags, links lead somewhere.

A block below the comment `<!-- needs ... -->` needs a GPU or the network and is only parsed. Names of things that one
has not got in a test (a Hub's teacher, one's images, one's run) are replaced by tiny ones.
"""

import ast
import importlib
import importlib.util
import io
import re
import runpy
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from hgkd_hf.cli.main import main
from hgkd_hf.cli.recipe import read_recipe, recipe_file
from hgkd_hf.deployment import export_onnx, export_program
from hgkd_hf.hub import student_image_processor
from hgkd_hf.methods.base.method import Method
from hgkd_hf.methods.registry import METHODS

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
IDS = [page.stem for page in PAGES]
# Resume, repair, "is not a multiple of".
PRIVATE_WORDS = re.compile(r"\b(?:(?:go|goes|going|gone) on|mend(?:s|ed|ing)?|no multiple of|in words)\b")
BLOCK = re.compile(
    r"^(?P<marks><!-- needs .*? -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    language: str
    text: str
    runs: bool


def blocks(page: Path, language: str) -> list[Block]:
    found = [Block(m["language"], m["text"], m["marks"] is None) for m in BLOCK.finditer(page.read_text())]
    return [block for block in found if block.language == language]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with all that the pages speak of, tiny."""
    world = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 7, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**sizes, image_size=196, patch_size=14), add_pooling_layer=False).save_pretrained(world / "vit")
    ViTImageProcessorPil().save_pretrained(world / "vit")
    widths = {"embedding_size": 16, "hidden_sizes": [16, 16, 16, 16], "depths": [1] * 4, "layer_type": "basic"}
    student = AutoModel.from_config(ResNetConfig(**widths))
    for folder in (world / "resnet", world / "runs/mine/student"):
        student.save_pretrained(folder)
        student_image_processor(64, (0.5,) * 3, (0.25,) * 3).save_pretrained(folder)
    classifier = ResNetForImageClassification(ResNetConfig(**widths))
    classifier.save_pretrained(world / "runs/mine-cifar10/model")
    student_image_processor(64, (0.5,) * 3, (0.25,) * 3).save_pretrained(world / "runs/mine-cifar10/model")
    onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    if onnx:
        export_onnx(
            export_program(student, (64, 64)),
            world / "runs/mine/student/onnx/model.onnx",
            ("last_hidden_state", "features"),
        )
    for index in range(8):
        path = world / "images/train" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (30 * index, 100, 200)).save(path)
    Image.new("RGB", (64, 64), "teal").save(world / "photo.jpg")
    return world


STAND_INS = {
    '"facebook/dinov2-base"': '"vit"',
    '"microsoft/resnet-18"': '"resnet"',
    '"path/to/images"': '"images"',
    'output_dir="runs/mine"': 'output_dir="run", max_steps=1, per_device_train_batch_size=4, report_to=[]',
}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_runs(page, world, monkeypatch):
    monkeypatch.chdir(world)
    names: dict = {"__name__": "documentation"}
    monkeypatch.setitem(sys.modules, "documentation", type(sys)("documentation"))  # where dataclasses look names up
    for block in blocks(page, "python"):
        ast.parse(block.text)
        if not block.runs:
            continue
        if "onnxruntime" in block.text:
            pytest.importorskip("onnxruntime", reason="needs the extra `export`")
        text = block.text
        for ours, tiny in STAND_INS.items():
            text = text.replace(ours, tiny)
        exec(compile(text, f"{page.name}: {text.splitlines()[0]}", "exec"), names)


COMMANDS = [
    (page, line)
    for page in PAGES
    for block in blocks(page, "bash")
    for line in block.text.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page.stem}-{i}" for i, (page, _) in enumerate(COMMANDS)])
def test_commands_exist_with_their_flags(page, line):
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        return
    for file in (word for word in words if word.endswith(".yaml")):
        assert (REPOSITORY / file).is_file()
    for flag, recipe in pairwise(words):
        assert flag != "--recipe" or recipe == "..." or recipe_file(recipe)
    command = command_in(words)
    if command:
        name, given = command
        flags = {word.partition("=")[0] for word in given if word.startswith("--")}
        known = set(re.findall(r"--\w+", help_of_command(name, *choice_in(given)))) if flags else set()
        assert flags <= known, f"{page.name}: hgkd {name} has no {sorted(flags - known)}"
        return
    scripts = [word for word in words if re.match(r"(examples|benchmarks|tests)/\w+.*\.py$", word)]
    if not scripts:
        assert {"-c", "pip", "torchrun"} & set(words), f"{page.name} has a command that no test understands: {line}"
        return
    script = REPOSITORY / scripts[0]
    assert script.is_file()
    given = words[words.index(scripts[0]) + 1 :]
    flags = {word.partition("=")[0] for word in given if word.startswith("--")}
    known = set(re.findall(r"--\w+", help_of(script))) if flags else set()
    assert flags <= known, f"{page.name}: {script.name} has no {sorted(flags - known)}"


def command_in(words: list[str]) -> tuple[str, list[str]] | None:
    """The command of `hgkd X ...` or `... -m hgkd_hf.cli.x ...`, and its arguments."""
    if words[0] in ("hgkd", ".venv/bin/hgkd"):
        return words[1], words[2:]
    for position, word in enumerate(words):
        if word.startswith("hgkd_hf.cli."):
            return word.removeprefix("hgkd_hf.cli.").replace("_", "-"), words[position + 1 :]
    return None


def choice_in(given: list[str]) -> list[str]:
    """The flag that decides which other flags there are, given or by a recipe."""
    chosen = {}
    for flag, value in pairwise(given):
        if flag == "--recipe" and value != "...":
            chosen |= read_recipe(value)
        elif flag in ("--method", "--task"):
            chosen[flag.removeprefix("--")] = value
    return [f"--{name}={chosen[name]}" for name in ("method", "task") if name in chosen]


@cache
def help_of_command(name: str, *choice: str) -> str:
    """All flags of a command, those of `TrainingArguments` included."""
    shown = io.StringIO()
    trains = name in ("distill", "finetune", "pretrain-teacher")
    with redirect_stdout(shown), pytest.raises(SystemExit):
        main([name, *choice, "--help_all" if trains else "--help"])
    return shown.getvalue()


@cache
def help_of(script: Path) -> str:
    """All flags of a script, run here: a process of its own would import everything anew."""
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(shown):
        patch.setattr(sys, "argv", [str(script), "--help"])
        patch.syspath_prepend(script.parent)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
    assert not ended.value.code
    return shown.getvalue()


def test_links_lead_somewhere():
    checked = 0
    for page in PAGES:
        text = re.sub(r"```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if not target.startswith(("http://", "https://", "#")):
                assert (page.parent / target.partition("#")[0]).is_file(), f"{page.name}: {target}"
                checked += 1
        for name in re.findall(r"`((?:docs|training|examples|tests|src)/[\w/.-]+)`", text):
            assert (REPOSITORY / name).exists(), f"{page.name}: {name}"
            checked += 1
    assert checked > 20


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs" / "hooks"))
    return importlib.import_module("settings_tables")


@pytest.mark.parametrize("method", METHODS)
def test_the_methods_page_has_every_setting_once(tables, method):
    page = tables.on_page_markdown((REPOSITORY / "docs" / "methods.md").read_text())
    assert "<!-- settings" not in page
    section = page.partition(f"\n## {method}\n")[2].partition("\n## ")[0]
    own = {item.name for item in fields(METHODS[method])} - {item.name for item in fields(Method)}
    listed = re.findall(r"^\| `(\w+)` \| ", section + page.partition("\n## Settings that")[2], re.MULTILINE)
    assert own <= set(listed)
    assert {item.name for item in fields(Method)} <= set(listed)


def test_a_row_tells_default_choices_and_limits(tables):
    rows = tables.settings_table("kd").splitlines()
    assert "| `objective` | `kd` | What is distilled. One of `labels`, `kd`, `dkd`, `hint`, `contrastive`. |" in rows
    assert "| `label_weight` | `1.0` | Of the label loss. At least 0. |" in rows
    assert "| `crop_scale` | `[0.08, 1.0]` | Share of the area cropped. |" in tables.settings_table("labelled")


def test_site_builds_without_warnings(tmp_path):
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "HGKDForPreTraining" in (tmp_path / "site/api/index.html").read_text()
    assert "<td><code>mask_ratio</code></td>" in (tmp_path / "site/methods/index.html").read_text()
    assert "https://fonts." not in (tmp_path / "site/index.html").read_text()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_pages_use_the_words_of_the_field(page):
    assert not PRIVATE_WORDS.findall(page.read_text())


def test_messages_use_the_words_of_the_field():
    """Of all strings in the package: help, errors, warnings, docstrings."""
    for path in sorted((REPOSITORY / "src").rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        assert not PRIVATE_WORDS.findall("\n".join(texts)), path
