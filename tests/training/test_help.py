"""The texts of --help: equal to what the parsers say, and there without the imports that take seconds."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TRAINING = Path(__file__).parents[2] / "training"
SCRIPTS = sorted(path.stem for path in TRAINING.glob("*.py") if path.stem != "quick_help")


@pytest.fixture(scope="module")
def quick_help():
    spec = importlib.util.spec_from_file_location("quick_help", TRAINING / "quick_help.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_texts_are_what_the_parsers_say(quick_help):
    if quick_help.VERSION.read_text() != quick_help.version("transformers"):
        pytest.skip("the texts are of another version of transformers, with which they are not used")
    expected = dict(quick_help.texts())
    assert set(expected) == set(quick_help.HELP.iterdir())
    for file, text in expected.items():
        assert file.read_text() == text, f"{file.name} is old: run python training/quick_help.py"


def help_of(*words: str, patch: str = "") -> tuple[str, bool]:
    """What a script prints, and whether it imported torch for that."""
    code = (
        f"import sys; sys.path.insert(0, {str(TRAINING)!r}); import quick_help, runpy; {patch}\n"
        f"sys.argv = ['{words[0]}.py', *{list(words[1:])!r}]\n"
        f"try: runpy.run_path({str(TRAINING / words[0])!r} + '.py', run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-2000:]
    text, _, imported = result.stdout.rstrip("\n").rpartition("\n")
    return text, imported == "True"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_heavy_import(script):
    text, imported = help_of(script, "--help")
    assert not imported
    assert text.startswith(f"usage: {script}.py")
    assert f"training/{script}.py" in text  # an example to copy


def test_method_and_task_choose_the_text():
    assert "--num_prototypes" in help_of("distill", "--method", "rob", "-h")[0]
    assert "--num_prototypes" not in help_of("distill", "--method=kd", "-h")[0]
    text = help_of("finetune", "--task=object-detection", "-h")[0]
    assert "--num_queries" in text
    assert "--layer_decay" in text


def test_the_parser_answers_where_the_text_may_be_wrong(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: rob\n")
    text, imported = help_of("distill", f"--recipe={recipe}", "--help")
    assert imported
    assert "--num_prototypes" in text
    text, imported = help_of("distill", "--help", patch="quick_help.version = lambda name: '6.0'")
    assert imported
    assert "--decoder_width" in text
