"""transformers and datasets against the test Hub, in fresh processes with empty caches."""

import json

from .server import HubServer
from .store import OTHER

PUSH_MODEL = """
import sys, torch
from transformers import ResNetConfig, ResNetModel, ViTImageProcessorPil
torch.manual_seed(0)
config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
model = ResNetModel(config).eval()
model.push_to_hub("alice/tiny", private=True, commit_message="Model", tags=["distilled"])
ViTImageProcessorPil(size={"height": 32, "width": 32}).push_to_hub("alice/tiny")
model.embedder.embedder.convolution.weight.data.zero_()
model.push_to_hub("alice/tiny", revision="zeroed", commit_message="On a branch")
model.push_to_hub("alice/tiny", create_pr=True, commit_message="As a pull request")
torch.manual_seed(0)
torch.save(ResNetModel(config).state_dict(), sys.argv[1])
"""

PULL_MODEL = """
import json, sys, torch
from transformers import AutoImageProcessor, AutoModel
expected = torch.load(sys.argv[1], weights_only=True)
found = AutoModel.from_pretrained("alice/tiny").state_dict()
zeroed = AutoModel.from_pretrained("alice/tiny", revision="zeroed").state_dict()
first = "embedder.embedder.convolution.weight"
print(json.dumps({
    "keys": list(found) == list(expected),
    "equal": all(torch.equal(found[key], expected[key]) for key in expected),
    "differ": [key for key in expected if not torch.equal(zeroed[key], expected[key])] == [first],
    "size": AutoImageProcessor.from_pretrained("alice/tiny", backend="pil").size["height"],
}))
"""


def test_model_and_image_processor(hub: HubServer, run_python, tmp_path):
    run_python(PUSH_MODEL, hub.env(), tmp_path / "expected.pt")
    repo = hub.repo("alice/tiny")
    assert repo.private
    assert [(c.title, c.changed) for c in repo.log()[1:]] == [
        ("Model", ("README.md", "config.json", "model.safetensors")),
        ("Upload processor", ("preprocessor_config.json",)),
    ]
    assert repo.log("zeroed")[-1].title == "On a branch"
    assert repo.log("refs/pr/1")[-1].title == "As a pull request"
    assert repo.resolve("main").tree["model.safetensors"].lfs

    result = run_python(PULL_MODEL, hub.env(), tmp_path / "expected.pt")
    assert json.loads(result.stdout) == {"keys": True, "equal": True, "differ": True, "size": 32}


def test_model_that_others_cannot_see(hub: HubServer, run_python):
    hub.api().create_repo("alice/tiny", private=True)
    code = """
import sys
from transformers import AutoConfig
for token in (False, sys.argv[1]):
    try:
        AutoConfig.from_pretrained("alice/tiny", token=token)
    except OSError as error:
        print(error)
"""
    said = run_python(code, hub.env(token=None), OTHER).stdout
    assert said.count("alice/tiny is not a local folder and is not a valid model identifier") == 2
    assert {hit.status for hit in hub.requests if "config.json" in hit.url} == {401, 404}


DATASET = """
import io, json, sys
import datasets
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from PIL import Image as Pil

def picture(i):
    buffer = io.BytesIO()
    Pil.new("RGB", (4, 4), (i, 0, 0)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}

features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
data = Dataset.from_dict({"image": [picture(i) for i in range(10)], "label": [i % 2 for i in range(10)]}, features)
commit = data.push_to_hub("alice/dots", split="train", num_shards=2)
data.select(range(2)).push_to_hub("alice/dots", split="test")

def first_channel(rows):
    return [row["image"].getpixel((0, 0))[0] for row in rows]

loaded = load_dataset("alice/dots", split="train")
streamed = load_dataset("alice/dots", split="train", streaming=True)
pinned = load_dataset("alice/dots", revision=commit.oid)
print(json.dumps({
    "loaded": first_channel(loaded),
    "streamed": first_channel(streamed),
    "features": loaded.features == features == streamed.features,
    "splits": sorted(load_dataset("alice/dots")),
    "pinned": sorted(pinned),
}))
"""


def test_dataset(hub: HubServer, run_python):
    found = json.loads(run_python(DATASET, hub.env()).stdout)
    pictures = list(range(10))
    assert found == {
        "loaded": pictures,
        "streamed": pictures,
        "features": True,
        "splits": ["test", "train"],
        "pinned": ["train"],
    }
    tree = hub.repo("alice/dots", kind="dataset").resolve("main").tree
    assert sum(path.endswith(".parquet") and blob.lfs for path, blob in tree.items()) == 3
