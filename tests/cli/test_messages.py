"""A flag in a message exists: in the command that the message writes down, or in every one that can say it."""

import ast
import io
import re
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest

from hgkd_hf.cli.main import COMMANDS, main
from hgkd_hf.finetuning.settings import SETTINGS as TASKS
from hgkd_hf.methods.settings import SETTINGS as METHODS

PACKAGE = Path(__file__).parents[2] / "src" / "hgkd_hf"
TRAIN = ("distill", "finetune", "pretrain-teacher")
# Which commands can say what a file says; the first line that fits counts. Files of `cli/` speak for their command.
WHO_SAYS = {
    "checkpoints/": TRAIN,
    "cli/errors.py": TRAIN,
    "cli/recipe.py": (*TRAIN, "teach", "evaluate", "embed", "predict"),
    "cli/resume.py": TRAIN,
    "data/cached.py": ("distill",),
    "data/dataset.py: --streaming": ("distill",),
    "data/labels.py: --streaming": ("distill",),
    "data/reading.py": ("distill",),
    "data/streaming.py: --streaming": ("distill",),
    "data/": ("distill", "finetune", "teach", "pretrain-teacher", "evaluate", "export", "embed", "predict"),
    "deployment/predictions.py": ("predict",),
    "deployment/": ("export",),
    "evaluation/": ("evaluate",),
    "finetuning/": ("finetune",),
    "hub/cache_card.py": ("publish",),
    "hub/student_push.py: --overwrite": ("publish",),
    "hub/student_push.py": ("distill", "publish"),
    "hub/publishing.py": ("distill",),
    "hub/pull.py": ("pull",),
    "methods/": ("distill",),
    "students/": ("distill",),
    "teachers/cache/info.py: --output_dir": ("teach",),
    "teachers/cache/info.py": ("distill",),
    "teachers/cache/reader.py": ("distill",),
    "teachers/cache/": ("teach",),
    "teachers/": ("distill", "teach"),
    "training/teaching.py": ("teach",),
    "training/": TRAIN,
}
NO_FLAGS_OF_OURS = {
    "__init__.py",
    "hub/machine.py",  # of git
    "hub/student_push.py: --repo_id",  # parts of a command line, which tests/hub/test_push_faults.py parses
    "hub/student_push.py: --best",
    "hub/privacy.py",  # of a command that it reads
    "cli/pull.py",  # parts of a command line, which tests/hub/test_pull.py parses
    "cli/parser.py",
    "cli/choices.py",  # a command line in the making
    "cli/main.py",
    "data/errors.py",  # what `open_split` replaces by a command's own flags
    "sparse/",  # of benchmarks
}
# A command in a message: from its name to the end of the line, of the clause or of the quotation.
COMMAND = re.compile(r"hgkd ([a-z-]+)([^`;:\n]*)")
FLAG = re.compile(r"(?<![\w-])--[a-z]\w*")


@cache
def flags_of(command: str) -> set[str]:
    """All flags of a command, whatever its method or task."""
    choices = {"distill": [f"--method={name}" for name in METHODS], "finetune": [f"--task={name}" for name in TASKS]}
    shown = io.StringIO()
    for choice in choices.get(command, [None]):
        with redirect_stdout(shown), pytest.raises(SystemExit):
            main([command, *([choice] if choice else []), "--help_all" if command in TRAIN else "--help"])
    return set(re.findall(r"^  (?:-h, )?(--\w+)", shown.getvalue(), re.MULTILINE))


def strings(path: Path) -> list[str]:
    """The literal strings of a file, those of an f-string joined; of docstrings, the help of commands alone."""
    tree = ast.parse(path.read_text())
    found = [ast.get_docstring(tree) or ""] if path.stem.replace("_", "-") in COMMANDS else []
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    hidden = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            hidden |= {id(part) for part in node.values}
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in hidden:
            found.append(node.value)
    return found


def who_says(file: str, flag: str) -> tuple[str, ...] | None:
    """The commands that can say it; None for what is no flag of ours."""
    if any(f"{file}: {flag}".startswith(start) for start in NO_FLAGS_OF_OURS):
        return None
    own = file.removeprefix("cli/").removesuffix(".py").replace("_", "-")
    if own in COMMANDS:
        return (own,)
    return next((commands for start, commands in WHO_SAYS.items() if f"{file}: {flag}".startswith(start)), ())


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", [name for name in FILES if FLAG.search((PACKAGE / name).read_text())])
def test_flags_of_messages_exist(file):
    for text in strings(PACKAGE / file):
        for command in COMMAND.finditer(text):
            assert set(FLAG.findall(command[2])) <= flags_of(command[1]), command[0]
        for flag in FLAG.findall(COMMAND.sub("", text)):
            commands = who_says(file, flag)
            assert commands != (), f"say in WHO_SAYS which commands can say {text!r}"
            for name in commands or ():
                assert flag in flags_of(name), f"hgkd {name} has no {flag}, but can say {text!r}"
