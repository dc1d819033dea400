"""Every command answers `--help` at once, names its flags, and shows examples that can be copied."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest

from hgkd_hf.cli.main import COMMANDS, load, main
from hgkd_hf.cli.recipe import recipe_file
from hgkd_hf.finetuning import settings as tasks
from hgkd_hf.finetuning.registry import TASKS
from hgkd_hf.methods import settings as methods
from hgkd_hf.methods.registry import METHODS

REPOSITORY = Path(__file__).parents[2]
CHOICES = [
    *((name,) for name in COMMANDS),
    *(("distill", f"--method={name}") for name in METHODS),
    *(("finetune", f"--task={name}") for name in TASKS),
    *((name, "--help_all") for name in ("distill", "finetune", "pretrain-teacher")),
]
# Read as the user's shell would: without the package's own test environment.
RUN = "import sys; sys.argv[0] = 'hgkd'; from hgkd_hf.cli.main import main; main()"


@pytest.fixture(scope="module")
def helps() -> dict[tuple, str]:
    return {}


def help_of(arguments: tuple, helps: dict, capsys) -> str:
    if arguments not in helps:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *(["--help"] if "--help_all" not in arguments else [])])
        assert ended.value.code in (0, None)
        helps[arguments] = capsys.readouterr().out
    return helps[arguments]


@pytest.mark.parametrize("arguments", CHOICES, ids=" ".join)
def test_help_can_be_read(arguments, helps, capsys):
    shown = help_of(arguments, helps, capsys)
    assert shown.startswith(f"usage: hgkd {arguments[0]} ")
    assert load(arguments[0]).__doc__.strip().splitlines()[0] in shown
    assert max(map(len, shown.splitlines())) < 120
    assert not re.search(r"--\w+-\w", shown.partition("options:")[2]), "a flag stands once, with underscores"


@pytest.mark.parametrize("arguments", CHOICES, ids=" ".join)
def test_every_flag_has_words(arguments, helps, capsys):
    """Of its own flags: transformers' are transformers'."""
    options = help_of(arguments, helps, capsys).partition("options:")[2]
    if "--help_all" in arguments:
        return
    bare = re.findall(r"^  (--\w+)(?: [A-Z{][^ ]*| \[[A-Z ]+\]| \.\.\.)*$(?!\n {20,})", options, re.MULTILINE)
    assert not bare


def examples() -> list[tuple[str, list[str]]]:
    """(command, words) of every example in a command's help."""
    found = []
    for name in COMMANDS:
        for line in re.findall(r"^    (\S.*)$", re.sub(r"\\\n\s+", " ", load(name).__doc__), re.MULTILINE):
            found.append((name, shlex.split(line, comments=True)))
    return found


@pytest.mark.parametrize(("command", "words"), examples(), ids=lambda value: value if isinstance(value, str) else "")
def test_examples_can_be_copied(command, words, helps, capsys):
    if words[0] == "accelerate":
        assert words[:3] == ["accelerate", "launch", "-m"]
        module, given = words[3].removeprefix("hgkd_hf.cli."), words[4:]
    else:
        assert words[0] == "hgkd"
        module, given = words[1].replace("-", "_"), words[2:]
    example = module.replace("_", "-")
    assert command == example or command in ("teachers", "students")  # which show what their names are for
    flags = {word.partition("=")[0] for word in given if word.startswith("--")}
    choice = tuple(f"{key}={given[given.index(key) + 1]}" for key in ("--method", "--task") if key in given)
    known = set(re.findall(r"--\w+", help_of((example, *choice), helps, capsys)))
    assert flags <= known
    for flag, recipe in pairwise(given):
        assert flag != "--recipe" or recipe_file(recipe)


def test_overview_lists_every_command(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z]", shown, re.MULTILINE)
    main([])
    assert capsys.readouterr().out == shown


def test_wrong_command_names_the_nearest():
    with pytest.raises(SystemExit, match="there is no command 'distil': did you mean distill"):
        main(["distil"])
    with pytest.raises(SystemExit, match="there is no command 'zzz': choose one of quickstart, distill"):
        main(["zzz"])


@pytest.mark.parametrize("command", COMMANDS)
def test_ways_to_call_a_command_are_one(command):
    """`hgkd X`, `python -m hgkd_hf.cli.x` and, where there is one, `training/x.py`."""
    module = command.replace("-", "_")
    ways = [["-c", RUN, command], ["-m", f"hgkd_hf.cli.{module}"]]
    script = REPOSITORY / "training" / f"{module}.py"
    ways += [[str(script)]] if script.is_file() else []
    shown = [
        subprocess.run([sys.executable, *way, "--help"], capture_output=True, text=True, timeout=300) for way in ways
    ]
    assert all(result.returncode == 0 for result in shown), shown[-1].stderr[-2000:]
    assert len({result.stdout for result in shown}) == 1


def flags_of(*types: type) -> dict[str, tuple]:
    return {item.name: (item.type, item.default, item.metadata.get("help")) for kind in types for item in fields(kind)}


@pytest.mark.parametrize("name", METHODS)
def test_help_shows_the_settings_that_a_method_takes(name):
    assert methods.SETTINGS.keys() == METHODS.keys()
    assert flags_of(*reversed(methods.SETTINGS[name])) == flags_of(METHODS[name])


@pytest.mark.parametrize("name", TASKS)
def test_help_shows_the_settings_that_a_task_takes(name):
    assert tasks.SETTINGS.keys() == TASKS.keys()
    assert flags_of(tasks.SETTINGS[name]) == flags_of(TASKS[name])


@pytest.mark.parametrize("arguments", [(), *((name,) for name in COMMANDS)], ids=lambda words: " ".join(words) or "-")
def test_help_takes_less_than_two_seconds(arguments):
    """Of processor time, which other processes change little; torch is what would take seconds."""
    code = f"{RUN[:-7]}\ntry: main()\nfinally: print(sorted({{'torch', 'datasets'}} & set(sys.modules)))"
    before = os.times()
    command = [sys.executable, "-c", code, *arguments, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2
    assert result.stdout.splitlines()[-1] == "[]"
