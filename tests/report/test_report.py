"""The report of a run: what it tells, that it keeps secrets, and that it works in a browser."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from hgkd_hf.data.skipped import append_skipped
from hgkd_hf.hub.student_card import StudentCard
from hgkd_hf.report import RunRecord, write_report
from hgkd_hf.report.record import charts

STEPS = 40


def test_record_groups_what_was_logged(run):
    record = RunRecord.read(run)
    assert record.finished
    assert record.steps == STEPS
    curves = {chart.title: chart.series for chart in record.charts}
    assert next(iter(curves)) == "loss"
    assert set(curves["loss"]) == {"loss", "feature loss", "pixel loss"}
    assert len(curves["loss"]["loss"]) == STEPS
    assert curves["kNN accuracy"] == {"kNN accuracy": [(0, 0.3), (20, 0.35), (40, 0.4), (40, 0.41)]}
    assert curves["target entropy"]["target entropy"][0] == (1, 3.0)
    assert list(curves).index("target entropy") < list(curves).index("learning rate")
    assert record.results["before training"]["kNN accuracy"] == 0.3
    assert record.results["the student"]["kNN accuracy"] == 0.41, "the last evaluation"
    assert record.recipe == {"max_steps": 40, "student": "resnet-18", "teacher": "vit"}
    assert "/home" not in str(record.description)


def test_values_that_were_not_finite_are_left_out():
    (chart,) = charts([{"step": 1, "loss": None}, {"step": 2, "loss": 1.0}])
    assert chart.series == {"loss": [(2, 1.0)]}


def test_a_run_that_goes_on_is_reported_too(run):
    (run / "summary.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')
    (run / "non_finite.jsonl").write_text('{"step": 3}\n{"step": 4}\n')
    for row in (5, 6, 5):
        append_skipped(run / "skipped.tsv", row, f"{row}\n.png", "broken")
    record = RunRecord.read(run)
    assert not record.finished
    assert record.steps == STEPS
    assert record.warnings == [
        "2 step(s) were skipped because loss or gradient was not finite (see non_finite.jsonl).",
        "2 image(s) could not be read (see skipped.tsv).",
    ]
    assert "not finished" in write_report(run).read_text()


def test_without_a_run_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*metrics.jsonl: give the folder of a run"):
        write_report(tmp_path)


def test_page_is_self_contained_and_tells_no_paths(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    card = StudentCard(name="my run", method="hgkd", student="ResNetModel", command="train --token hf_" + "a" * 34)
    card.description = {"teacher": "/home/somebody/private/vit, 21 M parameters"}
    card.save(run / "student/card.json")
    text = write_report(run).read_text()
    assert "H-GKD" in text
    assert "vit, 21 M parameters" in text
    assert "/home/" not in text
    assert "hf_aaa" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|@import|url\(""", text), "it asks nobody for anything"
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text).group(1)
    assert json.loads(data)[0]["title"] == "loss"


def test_last_picture_of_each_kind_is_shown(run):
    pictures = run / "pictures"
    pictures.mkdir()
    others = ("logo", "my-photo", "predictions-late", "-000050", "predictions-000050 copy", "predictions-٠٠٠٠٥٠")
    for name in ("predictions-000020", "predictions-000040", "most-alike-000040", *others):
        draw(pictures / f"{name}.png")
    assert {caption: path.name for caption, path in RunRecord.read(run).pictures.items()} == {
        "Most alike, step 40": "most-alike-000040.png",
        "Predictions, step 40": "predictions-000040.png",
    }


def draw(path: Path) -> None:
    from PIL import Image

    colours = torch.linspace(0, 255, 3 * 60 * 200).view(60, 200, 3).to(torch.uint8)
    Image.fromarray(colours.numpy()).save(path)


def test_page_in_a_browser(run, browser, tmp_path):
    (run / "pictures").mkdir()
    draw(run / "pictures/predictions-000040.png")
    path = write_report(run)
    page = browser.new_page(viewport={"width": 1180, "height": 900})
    problems, requests = [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    assert page.locator("h1").inner_text() == "my run"
    assert page.get_by_text("ResNetModel </script><b>").count() == 1, "written as text, not as markup"
    titles = page.locator(".chart h3").all_inner_texts()
    assert titles[:2] == ["loss", "kNN accuracy"]
    assert page.locator("figure img").evaluate("image => image.naturalWidth") == 200

    loss = page.locator(".chart").first
    loss.locator("svg").hover(position={"x": 54, "y": 60})
    first = loss.locator(".tip").inner_text().splitlines()
    assert first == ["step 1", "loss 0.35", "feature loss 0.3", "pixel loss 0.05"]
    knn = page.locator(".chart").nth(1)
    box = knn.locator("svg").bounding_box()
    knn.locator("svg").hover(position={"x": box["width"] - 15, "y": 60})
    assert knn.locator(".tip").inner_text().splitlines() == ["step 40", "kNN accuracy 0.41"]
    assert loss.locator(".tip").is_hidden(), "it hides when the pointer leaves"

    height = "svg => svg.querySelector('polyline').getAttribute('points')"
    before = loss.locator("svg").evaluate(height)
    loss.get_by_role("button", name="log").click()
    assert loss.locator("svg").evaluate(height) != before
    assert problems == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    page.screenshot(path=os.environ.get("SCREENSHOTS", str(tmp_path)) + "/report.png", full_page=True)
    page.close()
