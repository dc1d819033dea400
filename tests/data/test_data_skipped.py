"""What is written about unusable rows can be read again, whatever their names hold."""

import os

import pytest

from hgkd_hf.data import DistillationDataset, ImageTransform, load_images
from hgkd_hf.data.skipped import append_skipped, count_skipped, read_skipped

NAMES = ["a.png", "a\tb.png", "a\nb.png", "a\r\nb.png", "a\\tb.png", "\\", "\\\\n", "a\u2028b.png", "größe.png", "-"]


def test_any_name_comes_back(tmp_path):
    file = tmp_path / "skipped.tsv"
    for row, name in enumerate(NAMES):
        append_skipped(file, row, name, f"row {row} ({name}) cannot be decoded: it is empty.")
    append_skipped(file, 99, None, "row 99 holds no image")
    rows = read_skipped(file)
    assert [(row, path) for row, path, _ in rows] == [*enumerate(NAMES), (99, "-")]
    assert all(f"({path})" in reason for _, path, reason in rows[:-1])
    lines = file.read_text().split("\n")
    assert len(lines) == len(NAMES) + 2
    assert all(line.count("\t") == 2 for line in lines[:-1])


def test_names_that_are_no_text_are_kept_readable(tmp_path):
    append_skipped(tmp_path / "skipped.tsv", 0, os.fsdecode(b"gr\xf6\xdfe.png"), "broken")
    assert "gr" in read_skipped(tmp_path / "skipped.tsv")[0][1]


def test_images_are_counted_once(tmp_path):
    file = tmp_path / "skipped.tsv"
    assert count_skipped(file) == 0
    for row in (3, 4, 3):  # met by two processes, or again after a resume
        append_skipped(file, row, f"{row}.png", "broken")
    assert count_skipped(file) == 2


@pytest.mark.parametrize("name", ["a\tb.png", "c\nd.png"])
def test_a_folder_with_such_names(tmp_path, name):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / name).write_bytes(b"")
    (folder / "good.png").write_bytes(b"")
    dataset = DistillationDataset(load_images(folder), ImageTransform(8, True), seed=0, skipped_log=tmp_path / "s.tsv")
    for _ in range(2):
        with pytest.raises(ValueError, match="Too many rows"):
            dataset[0]
    assert dataset.num_skipped == count_skipped(tmp_path / "s.tsv") == 2
    assert {path for _, path, _ in read_skipped(tmp_path / "s.tsv")} == {str(folder / name), str(folder / "good.png")}
