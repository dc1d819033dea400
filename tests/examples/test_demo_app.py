"""The demo page in a real browser: an image goes in, pictures and neighbours come out."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from hgkd_hf import HGKDConfig, HGKDForPreTraining, PatchTeacher, SparseUNetConfig
from hgkd_hf.hub import student_image_processor

pytest.importorskip("gradio", reason="needs the extra `demo`")
EXAMPLE = Path(__file__).parents[2] / "examples/demo_app.py"


@pytest.fixture(scope="module")
def demo_app():
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    spec = importlib.util.spec_from_file_location("demo_app", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images(tmp_path) -> Path:
    """Twelve discs of different colours on different grounds."""
    folder = tmp_path / "images"
    folder.mkdir()
    rows, columns = np.mgrid[:96, :96]
    for index in range(12):
        disc = (rows - 30 - 3 * index) ** 2 + (columns - 48) ** 2 < 20**2
        picture = np.where(disc[..., None], [250 - 20 * index, 90, 20 * index], [40, 60 + 10 * index, 90])
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture
def run(vit, student_config: SparseUNetConfig, tmp_path) -> Path:
    """A run's folder, its teacher beside it."""
    torch.manual_seed(0)
    vit.save_pretrained(tmp_path / "teacher")
    teacher = PatchTeacher.from_pretrained(tmp_path / "teacher", image_size=64)
    HGKDForPreTraining(HGKDConfig.for_teacher(teacher, student_config, image_size=64)).save_pretrained(
        tmp_path / "run"
    )
    student_image_processor(64, (0.5,) * 3, (0.25,) * 3).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_a_stock_student_shows_its_maps(demo_app, encoder_config, images, tmp_path):
    AutoModel.from_config(encoder_config).save_pretrained(tmp_path / "student")
    student_image_processor(64, (0.5,) * 3, (0.25,) * 3).save_pretrained(tmp_path / "student")
    demo = demo_app.Demo(str(tmp_path / "student"), str(images))
    pictures, alike = demo.look(Image.open(images / "03.png"), 0.6, 0)
    assert [title for _, title in pictures] == [
        "image", "8 channels, stride 4", "16 channels, stride 8", "32 channels, stride 16",
    ]  # fmt: skip
    assert len(alike) == 8
    np.testing.assert_array_equal(alike[0][0], pictures[0][0])  # itself is the most alike
    assert demo_app.Demo(str(tmp_path / "student"), None).look(Image.open(images / "03.png"), 0.6, 0)[1] == []


def test_page_in_a_browser(demo_app, run, images, browser, tmp_path):
    student, bank = os.environ.get("DEMO_STUDENT", str(run)), os.environ.get("DEMO_IMAGES", str(images))
    app = demo_app.build(demo_app.Demo(student, bank), "tiny")
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    try:
        page.goto(url)
        upload = os.environ.get("DEMO_UPLOAD", str(images / "05.png"))
        page.locator("input[type=file]").first.set_input_files(upload)
        page.get_by_role("button", name="Look").wait_for()
        page.wait_for_timeout(1500)
        page.get_by_role("button", name="Look").click()
        captions = page.locator(".caption-label, .grid-wrap .caption")
        captions.nth(12).wait_for(timeout=90_000)  # five pictures and eight neighbours
        text = captions.all_inner_texts()
        assert text[:5] == [
            "image", "what the student sees", "teacher's features", "student's prediction", "squared error",
        ]  # fmt: skip
        assert [caption.strip() for caption in text[5:]] == [f"{place}." for place in range(1, 9)]
        page.screenshot(path=os.environ.get("SCREENSHOTS", str(tmp_path)) + "/demo.png")
    finally:
        page.close()
        app.close()
