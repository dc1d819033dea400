"""`hgkd embed`: a table of features with the names of the files, and two pictures."""

import sys
from pathlib import Path
from types import ModuleType

import datasets
import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel

from hgkd_hf.cli.embed import main
from hgkd_hf.data import load_images
from hgkd_hf.evaluation import Features, pooled_features
from hgkd_hf.evaluation.embedding import feature_table, project
from hgkd_hf.hub import student_image_processor
from hgkd_hf.visualize import own_neighbours_figure

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    widths = {"embedding_size": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [1] * 4, "layer_type": "basic"}
    ResNetModel(ResNetConfig(**widths)).save_pretrained(folder)
    student_image_processor(32, MEAN, STD).save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path) -> Path:
    """Nine pictures, some of two classes, one of them broken."""
    generator = torch.Generator().manual_seed(0)
    for index in range(9):
        path = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 255, (32, 32, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    (tmp_path / "images/a/4.png").write_bytes(b"no picture")
    return tmp_path / "images"


def test_table_holds_what_the_model_says_of_each_file(model, images, tmp_path, capsys):
    table = main([f"--model={model}", f"--dataset={images}", f"--output_dir={tmp_path / 'out'}", "--batch_size=4"])
    rows = datasets.Dataset.from_parquet(str(table), cache_dir=str(tmp_path / "cache"))
    assert [row["file"] for row in rows] == [f"a/{i}.png" for i in (0, 2, 6, 8)] + [f"b/{i}.png" for i in (1, 3, 5, 7)]
    assert rows["label"][:] == ["a"] * 4 + ["b"] * 4
    assert rows["row"][:] == [0, 1, 3, 4, 5, 6, 7, 8]
    network, mean, std = ResNetModel.from_pretrained(model).eval(), torch.tensor(MEAN), torch.tensor(STD)
    for row in rows:
        pixels = datasets.Image().decode_example({"path": str(images / row["file"]), "bytes": None})
        pixels = torch.from_numpy(np.array(pixels)) / 255
        expected = pooled_features(network, ((pixels - mean) / std).permute(2, 0, 1)[None])[0]
        torch.testing.assert_close(torch.tensor(row["features"]), expected, rtol=1e-4, atol=1e-5)
    for name in ("neighbours.png", "plane.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 100
    assert "8 images, 32 features each; 1 could not be read" in capsys.readouterr().out


def test_without_labels_and_matplotlib(model, images, tmp_path, monkeypatch, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    (images / "b/1.png").rename(flat / "one.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    table = main([f"--model={model}", f"--dataset={flat}", f"--output_dir={tmp_path / 'out'}"])
    assert parquet.read_table(table).column_names == ["row", "file", "features"]
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".parquet"]


def test_bad_input_is_one_sentence(model, images):
    with pytest.raises(ValueError, match=r"image_size is 0, but it must be at least 1 \(--image_size\)"):
        main([f"--model={model}", f"--dataset={images}", "--image_size=0"])


def test_names_of_files_in_tables(tmp_path):
    rows = {"image": [{"bytes": b"x", "path": "photo 1.png"}, {"bytes": b"y", "path": None}], "label": [1.0, None]}
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("float64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    source = load_images(tmp_path / "train.parquet", label_column="label")
    table = feature_table(Features(torch.eye(2)), source)
    assert table["file"].to_pylist() == ["photo 1.png", None]
    assert table["label"].to_pylist() == [1, None]


def test_principal_components(monkeypatch):
    """Two groups of directions lie apart on the first component; the second is orthogonal to it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    generator = torch.Generator().manual_seed(0)
    groups = torch.eye(8)[:2].repeat_interleave(20, 0) + 0.05 * torch.randn(40, 8, generator=generator)
    points, method = project(groups)
    assert (method, points.shape) == ("PCA", (40, 2))
    assert points[:20, 0].sign().unique().tolist() == [-points[20, 0].sign().item()]
    assert points[:, 0].var() > 10 * points[:, 1].var()
    torch.testing.assert_close((points[:, 0] * points[:, 1]).sum(), torch.tensor(0.0), atol=1e-4, rtol=0)


def test_umap_where_it_is_installed(monkeypatch):
    class UMAP:
        def __init__(self, **settings):
            self.settings = settings

        def fit_transform(self, features):
            assert (self.settings["metric"], self.settings["random_state"]) == ("cosine", 3)
            return features[:, :2] * 2

    monkeypatch.setitem(sys.modules, "umap", ModuleType("umap"))
    sys.modules["umap"].UMAP = UMAP
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "umap" or None)
    features = torch.randn(40, 4)
    points, method = project(features, seed=3)
    assert method == "UMAP"
    torch.testing.assert_close(points, features[:, :2] * 2)
    assert project(features[:10])[1] == "PCA"  # too few for a graph


def test_real_umap():
    pytest.importorskip("umap", reason="needs umap-learn")
    features = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    points, method = project(features)
    assert (method, points.shape) == ("UMAP", (40, 2))
    torch.testing.assert_close(project(features)[0], points)


def test_an_image_is_not_its_own_neighbour():
    """Nor where others equal it: then it is left out wherever it stands."""
    features = Features(torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]]))
    figure = own_neighbours_figure(features, lambda row: torch.full((4, 4, 3), row / 4), queries=4, count=2)
    # Of each picture, the row of its image.
    shown = [round(4 * float(image.get_array().max())) for image in figure.axes[0].images]
    rows = [shown[start : start + 3] for start in range(0, 12, 3)]
    assert [row[0] for row in rows] == [0, 1, 2, 3]
    assert [sorted(row[1:]) for row in rows[:3]] == [[1, 2], [0, 2], [0, 1]]
    assert 3 not in rows[3][1:]
