"""The house: which room may import which, no circles, short files. `python tests/test_structure.py` draws it."""

import ast
import re
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "src" / "hgkd_hf"
# A file imports from its own room and from rooms further up in this list.
ROOMS = (
    "sparse",
    "students",
    "checkpoints",
    "teachers",
    "objectives",
    "data",
    "methods",
    "evaluation",
    "training",
    "visualize",
    "hub",
    "report",
    "finetuning",
    "deployment",
    "demo",
    "cli",
)
AT_THE_ROOT = {"__init__.py", "version.py", "py.typed"}
LONGEST = 400  # lines


@cache
def imports() -> dict[str, set[str]]:
    """The files of the package, and which of them each imports: anywhere in it, for type checkers alone too."""
    return {path.relative_to(PACKAGE).as_posix(): set(imported(path)) for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path):
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [name.name.split(".") for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["hgkd_hf", *package[: len(package) - node.level + 1]] if node.level else []
            module = [*above, *(node.module.split(".") if node.module else ())]
            modules = [[*module, name.name] for name in node.names]
        else:
            continue
        for module in modules:
            if module[0] == "hgkd_hf":
                yield file_of(module[1:]) or file_of(module[1:-1])


def file_of(module: list[str]) -> str | None:
    """The file of a module, relative to the package; None if there is none of that name."""
    for path in (PACKAGE.joinpath(*module).with_suffix(".py"), PACKAGE.joinpath(*module, "__init__.py")):
        if module and path.is_file():
            return path.relative_to(PACKAGE).as_posix()
    return None if module else "__init__.py"


def room(file: str) -> str:
    return file.partition("/")[0]


def test_every_room_has_its_place():
    assert {room(file) for file in imports()} - AT_THE_ROOT == set(ROOMS)
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == AT_THE_ROOT


def test_no_arrow_against_the_order():
    against = [
        f"{file} -> {other}"
        for file, others in imports().items()
        for other in others
        if room(file) in ROOMS and other != "version.py"
        if room(other) not in ROOMS or ROOMS.index(room(other)) > ROOMS.index(room(file))
    ]
    assert not against


def test_no_circle():
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_cli_is_thin_at_the_top():
    """Files of `training/` are the commands and nothing else."""
    for path in (REPOSITORY / "training").glob("*.py"):
        assert len(path.read_text().splitlines()) < 20, path.name


def test_names_of_test_files_are_unique():
    """They are imported by their names alone, and two of one name stop the whole suite."""
    names = Counter(path.name for path in (REPOSITORY / "tests").rglob("*.py") if "old_runs" not in path.parts)
    assert not {name for name, count in names.items() if count > 1} - {"conftest.py", "__init__.py"}


@pytest.mark.parametrize("folder", ["src", "training", "examples", "benchmarks", "tests", "model_cards"])
def test_files_are_short(folder):
    lines = {path: len(path.read_text().splitlines()) for path in (REPOSITORY / folder).rglob("*.py")}
    assert not {path.relative_to(REPOSITORY).as_posix(): n for path, n in lines.items() if n >= LONGEST}


def test_nobody_asks_a_model_for_its_attributes():
    """What a distiller can do says `Distiller`; of stock models only dual encoders are told from others."""
    asked = re.compile(
        r"(?:getattr|hasattr)\((?:self\.|trainer\.)*(?:model|student|teacher|distiller|encoder), \"(\w+)\""
    )
    found = {(path.name, name) for path in PACKAGE.rglob("*.py") for name in asked.findall(path.read_text())}
    assert {name for _, name in found} <= {"vision_model"}, found


def drawing() -> str:
    """One line a room: what it imports from."""
    arrows = {name: set() for name in ROOMS}
    for file, others in imports().items():
        if room(file) in ROOMS:
            arrows[room(file)] |= {room(other) for other in others} & set(ROOMS) - {room(file)}
    return "\n".join(f"{name:<12}<- {' '.join(sorted(found, key=ROOMS.index))}" for name, found in arrows.items())


if __name__ == "__main__":
    print(drawing())
