"""The demo page in a real browser: an image goes in, pictures and neighbours come out."""

import importlib.util
import os
import re
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from hgkd_hf import HGKDConfig, HGKDForPreTraining, PatchTeacher, SparseUNetConfig
from hgkd_hf.hub import student_image_processor

httpx = pytest.importorskip("httpx", reason="needs the extra `demo`")
gradio_client = pytest.importorskip("gradio_client", reason="needs the extra `demo`")
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
    pictures, alike = demo.look(str(images / "03.png"), 0.6, 0)
    assert [title for _, title in pictures] == [
        "image", "8 channels, stride 4", "16 channels, stride 8", "32 channels, stride 16",
    ]  # fmt: skip
    assert len(alike) == 8
    np.testing.assert_array_equal(alike[0][0], pictures[0][0])  # itself is the most alike
    assert demo_app.Demo(str(tmp_path / "student"), None).look(str(images / "03.png"), 0.6, 0)[1] == []


def header_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels: whoever decodes it fails otherwise than by the bound."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


@pytest.fixture
def page(demo_app, encoder_config, tmp_path, monkeypatch):
    """The page of a stock student, whose uploads are deleted after a second; as a client of its address."""
    AutoModel.from_config(encoder_config).save_pretrained(tmp_path / "student")
    student_image_processor(64, (0.5,) * 3, (0.25,) * 3).save_pretrained(tmp_path / "student")
    monkeypatch.setattr(demo_app, "UPLOADS_LIVE", 10)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    app = demo_app.build(demo_app.Demo(str(tmp_path / "student"), None), "tiny")
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True, max_file_size=demo_app.MAX_FILE_SIZE)
    yield gradio_client.Client(url, verbose=False)
    app.close()


BAD_UPLOADS = {
    "large": (header_of(9000, 9000), "The image has 9000x9000 pixels, more than 33554432: scale it down."),
    "169 million pixels": (header_of(13000, 13000), "its 13000x13000 pixels are more than 134217728."),
    "a bomb": (header_of(60000, 60000), "The file cannot be decoded: "),
    "truncated": (header_of(64, 64), "The file cannot be decoded: "),
    "text": (b"no image at all", "The file cannot be decoded: its format is not known."),
    "empty": (b"", "The file cannot be decoded: its format is not known."),
    "a program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "The file is of the format EPS: choose one of JPEG, ",
    ),
}


def test_uploads_are_bounded_and_deleted(page, images, tmp_path):
    """Whatever is sent is answered in one sentence, before it is decoded, and does not stay."""
    for kind, (data, message) in BAD_UPLOADS.items():
        (tmp_path / "upload.png").write_bytes(data)
        with pytest.raises(gradio_client.exceptions.AppError, match=re.escape(message)) as error:
            page.predict(gradio_client.handle_file(tmp_path / "upload.png"), 0.6, 0, api_name="/look")
        assert str(tmp_path) not in str(error.value), kind
    answer = httpx.post(f"{page.src}gradio_api/upload", files={"files": ("large.png", bytes(11 * 2**20))})
    assert (answer.status_code, "maximum allowed size" in answer.text) == (413, True)
    pictures, _ = page.predict(gradio_client.handle_file(images / "03.png"), 0.6, 0, api_name="/look")
    assert len(pictures) == 4
    assert list((tmp_path / "uploads").rglob("03.png"))
    deadline = time.monotonic() + 60
    while stored := [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()]:
        assert time.monotonic() < deadline, stored
        time.sleep(0.5)


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
