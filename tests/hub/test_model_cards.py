"""The cards of the models that were trained here are what their facts render, and the Hub would take them."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hgkd_hf.hub import StudentCard, readme

from . import cards

FOLDER = Path(__file__).parents[2] / "model_cards"
FACTS = sorted(path for path in FOLDER.glob("*.json") if path.name != "sources.json")


@pytest.fixture
def script(tmp_path, monkeypatch):
    """`model_cards/render.py`, working in a folder of its own."""
    spec = importlib.util.spec_from_file_location("render", FOLDER / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", tmp_path)
    (tmp_path / "sources.json").write_text('{"dots": {"license": {"id": "cc0-1.0"}}}')
    return module


def test_there_are_cards_and_each_has_its_facts():
    assert FACTS
    assert [path.stem for path in FACTS] == sorted(path.stem for path in FOLDER.glob("*.md"))


@pytest.mark.parametrize("facts", FACTS, ids=lambda path: path.stem)
def test_card_is_what_its_facts_render(facts: Path):
    card = StudentCard.load(facts)
    text = facts.with_suffix(".md").read_text(encoding="utf-8")
    assert text == card.render(), "run: python model_cards/render.py"
    assert cards.validate(text, "model") == ([], [])
    assert ModelCard(text).data.to_dict() == readme.split(text)[0]
    assert card.license is not None
    for path in (facts, facts.with_suffix(".md")):
        assert not re.search(r"(?<![\w:/])/(work|home|root|tmp|mnt|opt|data)/|~/|hf_[A-Za-z0-9]{20}", path.read_text())
    assert card.to_dict() == json.loads(facts.read_text())


def test_facts_of_a_run_with_a_card(script, tmp_path):
    from hgkd_hf.hub import License, Source

    card = StudentCard(name="x", teachers=[Source("t", license=License("mit"))], dataset=Source("dots"))
    card.pictures, card.run = {"a.png": "gone"}, {"steps": 3, "images_seen": 12}
    card.save(tmp_path / "run" / "student" / "card.json")
    script.main(["--add", str(tmp_path / "run"), "--name", "mine"])
    added = StudentCard.load(tmp_path / "mine.json")
    assert (added.name, added.run["steps"], added.pictures) == ("mine", 3, {})
    assert added.dataset.license == License("cc0-1.0")
    assert added.license == License("mit")
    assert (tmp_path / "mine.md").read_text() == added.render()


def test_facts_of_an_unfinished_run(script, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match="give the folder of a finished run"):
        script.main(["--add", str(tmp_path / "run")])


def test_facts_of_a_benchmark(script, tmp_path):
    """The run's own card, with the metrics of the benchmark's cells; its other numbers are not the card's."""
    from hgkd_hf.hub import Source

    card = StudentCard(name="hgkd-0", dataset=Source("sign_dots"), settings={"student": "resnet-18"})
    card.save(tmp_path / "120s" / "hgkd-0" / "student" / "card.json")
    cells = tmp_path / "120s" / "cells"
    cells.mkdir()
    (cells / "random-0-frozen.json").write_text('{"knn_accuracy": 0.25}')
    (cells / "hgkd-0-frozen.json").write_text('{"knn_accuracy": 0.5, "linear_accuracy": 0.75, "process_seconds": 120}')
    with pytest.raises(FileNotFoundError, match="spark-0"):
        script.main(["--benchmark", str(tmp_path / "120s"), "--rows", "spark"])
    script.main(["--benchmark", str(tmp_path / "120s"), "--rows", "hgkd", "--license", "mit"])
    added = StudentCard.load(tmp_path / "hgkd-resnet18-sign-dots.json")
    assert added.results["before training"] == {"knn_accuracy": 0.25}
    assert added.results["this student"] == {"knn_accuracy": 0.5, "linear_accuracy": 0.75}
    assert set(added.protocol) == {"knn_accuracy", "linear_accuracy"}
