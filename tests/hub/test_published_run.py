"""From the command line to the Hub and back: what a run publishes is what another machine loads and goes on with."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Image
from huggingface_hub import ModelCard
from PIL import Image as Pil
from transformers import AutoModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from hgkd_hf.cli.choices import parse_method
from hgkd_hf.hub import PushError, StudentCard, readme, student_image_processor, write_student_folder
from hgkd_hf.hub.pull import pull_run

from .server import HubServer
from .store import OTHER, WRITER

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads

REPOSITORY = Path(__file__).parents[2]
REPO = "alice/student"
STUDENT = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [1, 1, 1]}
STUDENT["layer_type"] = "basic"
PLANTED = "hf_" + "p1anted" * 5


def script(name: str, hub: HubServer, *arguments: object, home: Path | None = None, **variables: str) -> str:
    command = [sys.executable, str(REPOSITORY / "training" / name), *map(str, arguments)]
    environment = {**hub.env(home=home), "MY_SECRET": PLANTED, "CUDA_VISIBLE_DEVICES": "", **variables}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture
def teacher_and_data(hub: HubServer, tmp_path: Path) -> None:
    """`alice/teacher` (MIT), a tiny ViT, and `alice/dots` (CC0), 16 + 8 pictures of two classes."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher" / "README.md").write_text("---\nlicense: mit\n---\n")
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    for split, count in (("train", 16), ("test", 8)):
        pictures = [Pil.new("RGB", (64, 64), (40 * (i % 2), 9 * i, 100 + count)) for i in range(count)]
        rows = {"image": pictures, "label": [i % 2 for i in range(count)]}
        (tmp_path / "dots" / "data").mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows, features).to_parquet(tmp_path / "dots" / "data" / f"{split}.parquet")
    (tmp_path / "dots" / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    api = hub.api()
    for name, kind in (("teacher", "model"), ("dots", "dataset")):
        api.create_repo(f"alice/{name}", repo_type=kind)
        api.upload_folder(repo_id=f"alice/{name}", repo_type=kind, folder_path=tmp_path / name)


FLAGS = {
    "teacher": "alice/teacher",
    "teacher_layers": 1,
    "dataset": "alice/dots",
    "student": json.dumps(STUDENT),
    "decoder": "truncated",
    "decoder_width": 32,
    "mask_ratio": 0.6,
    "image_size": 64,
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "save_steps": 2,
    "knn_split": "test",
    "knn_k": 3,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "hub_model_id": REPO,
    "hub_token": WRITER,
}


def test_train_push_load_run_the_snippet_and_go_on(hub: HubServer, teacher_and_data, run_python, tmp_path):
    run = tmp_path / "deep inside" / "run"
    flags = [f"--{name}={value}" for name, value in FLAGS.items()]
    said = script("distill.py", hub, *flags, "--push_to_hub", "--hub_strategy=checkpoint", f"--output_dir={run}")
    assert f"published: {hub.url}/{REPO}/commit/" in said
    tree = hub.repo(REPO).resolve("main").tree
    commits = hub.repo(REPO).log()[1:]
    assert commits[0].title == "Training in progress, step 2"
    assert [c.title for c in commits if not c.title.startswith("Training in progress")] == ["End of training"]

    # Nothing of the machine, no token, no pickle.
    for name, blob in tree.items():
        assert PLANTED.encode() not in blob.data, name
        assert WRITER.encode() not in blob.data, name
        assert not name.endswith((".bin", ".pt", ".pth", ".pkl")), name
        if not name.startswith("last-checkpoint/"):
            assert str(tmp_path).encode() not in blob.data, name
    for path in (run / "student").rglob("*"):
        assert not path.is_file() or PLANTED.encode() not in path.read_bytes()

    # The card tells where it comes from, to the commit.
    text = tree["README.md"].data.decode()
    card = ModelCard(text)
    assert card.data.to_dict() == readme.split(text)[0]
    shas = {name: hub.repo(f"alice/{name}", kind).resolve("main").oid for name, kind in KINDS.items()}
    assert card.data.to_dict()["distillation"]["teacher_revision"] == shas["teacher"]
    assert (card.data.license, card.data.datasets) == ("mit", ["alice/dots"])
    assert card.data.eval_results[0].dataset_revision == shas["dots"]
    assert "that of alice/teacher" in text
    (entry,) = yaml.safe_load(tree[".eval_results/dots.yaml"].data)
    assert entry["dataset"] == {"id": "alice/dots", "task_id": "default", "revision": shas["dots"]}
    facts = json.loads(tree["card.json"].data)
    assert facts["changed"][:3] == ["dataset", "teacher", "teacher_layers"]
    assert facts["run"]["images_seen"] == 16

    for told in (
        "| mask | 6 of 16 cells of 16 px visible (mask ratio 0.6) |",
        "| objective | feature 1.0 (cosine+smooth-l1, target norm whiten, all positions), pixel 0.0 |",
        "split train, images 16, fingerprint ",
        "| before training |",
        "| this student |",
        "kNN accuracy: vote of the 3 nearest by cosine",
        "![Loss and kNN accuracy over the steps.](curves.png)",
        "(predictions.png)",
        "| hardware | CPU ",
        "| seconds |",
        "| images per second |",
        "| versions | hgkd",
        "```bash\nhgkd distill --teacher=alice/teacher",
    ):
        assert told in text, told

    # Elsewhere, in a fresh process with an empty cache: same features, the card's snippet runs as it is, and its
    # metadata are accepted and read. What it was before the training's end is there by its commit.
    snippet = text.split("```python\n")[1].split("```")[0]
    said = run_python(ELSEWHERE, hub.env(token=None), tmp_path / "features.pt", snippet, commits[0].oid, timeout=300)
    assert json.loads(said.stdout) == readme.split(text)[0]
    local = AutoModel.from_pretrained(run / "student").eval()
    features = local(torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64)).last_hidden_state
    assert torch.equal(torch.load(tmp_path / "features.pt", weights_only=True), features)

    # The whole student too, and the published recipe is a recipe.
    decoder = text.split("```python\n")[2].split("```")[0]
    run_python(decoder + "\nassert student.decoder is not None", hub.env(token=None))
    recipe = yaml.safe_load(tree["recipe.yaml"].data)
    assert {name: recipe[f"{name}_revision"] for name in ("teacher", "dataset")} == {
        "teacher": shas["teacher"],
        "dataset": shas["dots"],
    }
    (tmp_path / "recipe.yaml").write_bytes(tree["recipe.yaml"].data)
    again, training = parse_method(["--recipe", str(tmp_path / "recipe.yaml")])
    assert (again.teacher, again.dataset, again.image_size, training.max_steps) == (
        *("alice/teacher", "alice/dots", 64, 4),
    )

    # And another machine goes on with the run.
    shutil.rmtree(run)
    said = script("pull.py", hub, REPO, "--output_dir", tmp_path / "elsewhere")
    assert "checkpoint-4 is there, of commit" in said
    elsewhere = tmp_path / "elsewhere"
    arguments = ["--recipe", elsewhere / "recipe.yaml", "--output_dir", elsewhere, "--resume", "--max_steps=6"]
    script("distill.py", hub, *arguments)
    assert json.loads((elsewhere / "summary.json").read_text())["steps"] == 6
    assert StudentCard.load(elsewhere / "student" / "card.json").results.keys() == {"before training", "this student"}


ELSEWHERE = """
import json, sys, torch
from huggingface_hub import ModelCard
from transformers import AutoModel
features_file, snippet, first_commit = sys.argv[1:]
model = AutoModel.from_pretrained("alice/student").eval()
torch.save(model(torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64)).last_hidden_state, features_file)
assert "hgkd_hf" not in sys.modules
scope = {}
exec(snippet, scope)
assert scope["features"].shape == (1, 32, 4, 4), scope["features"].shape

card = ModelCard.load("alice/student")
card.validate()
print(json.dumps(card.data.to_dict()))

from hgkd_hf.methods.hgkd.method import HGKDMethod
earlier = AutoModel.from_pretrained("alice/student", revision=first_commit).state_dict()
weights = "embedder.embedder.convolution.weight"
assert not torch.equal(earlier[weights], model.state_dict()[weights])
settings = {"feature_weight": 0.0, "pixel_weight": 1.0, "decoder": "full", "decoder_width": 32, "image_size": 64}
start = {"student": "alice/student", "student_pretrained": True, "student_revision": first_commit}
again = HGKDMethod("dots", **start, **settings).build_model()
assert torch.equal(again.student.encoder.state_dict()[weights], earlier[weights])
"""
KINDS = {"teacher": "model", "dots": "dataset"}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run as `publish.py` finds it; what it was made of is not known."""
    model = ResNetModel(ResNetConfig(**{k: v for k, v in STUDENT.items() if k != "model_type"}))
    card = StudentCard(name="mine", method="hgkd")
    processor = student_image_processor(64, (0.5,) * 3, (0.5,) * 3)
    write_student_folder(model, tmp_path / "run" / "student", processor, card)
    return tmp_path / "run"


def test_publish_later(hub: HubServer, publish, finished: Path, capsys):
    arguments = (finished, "--repo_id", REPO, "--license", "mit", "--tag", "v1")
    publish(*arguments, "--dry_run")
    shown = capsys.readouterr().out
    assert "to alice/student, tag v1" in shown
    assert not [hit for hit in hub.requests if hit.method not in ("GET", "HEAD")]
    assert not hub.store.repos
    publish(*arguments)
    pushed = hub.repo(REPO).log()[-1]
    listed = {name: int(size.replace(",", "")) for size, name in re.findall(r"^ *([\d,]+)  (\S+)$", shown, re.M)}
    assert listed == {name: len(pushed.tree[name].data) for name in pushed.changed}
    assert shown.split("could not be read.\n\n")[1].strip() == pushed.tree["README.md"].data.decode().strip()
    assert f"published: {hub.url}/{REPO}/commit/{pushed.oid}" in capsys.readouterr().out
    publish(*arguments, "--dry_run")
    assert "README.md: The one on the Hub was merged into." in capsys.readouterr().out


def test_dry_run_knows_the_name_and_the_branchs_beginning(hub: HubServer, publish, finished: Path, capsys):
    arguments = (finished, "--repo_id", "student", "--license", "mit")
    publish(*arguments)
    text = hub.repo(REPO).resolve("main").tree["README.md"].data.decode()
    hub.api().upload_file(path_or_fileobj=(text + "By hand\n").encode(), path_in_repo="README.md", repo_id=REPO)
    capsys.readouterr()
    publish(*arguments, "--revision", "try", "--dry_run")
    shown = capsys.readouterr().out
    publish(*arguments, "--revision", "try")
    assert shown.startswith("to alice/student, revision try\n")
    pushed = hub.repo(REPO).resolve("try").tree["README.md"].data.decode()
    assert pushed.endswith("By hand\n")
    assert shown.split("was merged into.\n\n")[1].strip() == pushed.strip()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing is known of what the student was made of: choose a licence with --license"),
        (("--license", "other"), "--license other needs --license_name and --license_link."),
        (("--license", "mit", "--best"), "there is no .*student-best: give the folder of a finished run"),
        (("--license", "nonsense"), "the Hub refuses the metadata of the README"),
        (("--license", "mit", "--create_pr", "--tag", "v1"), "a pull request neither gates"),
        (("--license", "mit", "--repo_id", "a b", "--dry_run"), "is not a name for a repository"),
    ],
)
def test_what_hinders_a_publication_is_one_sentence(publish, finished: Path, arguments, said):
    with pytest.raises((ValueError, FileNotFoundError, PushError), match=said) as error:
        publish(finished, "--repo_id", REPO, *arguments)
    assert "\n" not in str(error.value)


def test_script_ends_with_the_sentence(hub: HubServer, finished: Path):
    command = [sys.executable, REPOSITORY / "training" / "publish.py", finished, "--repo_id", REPO, "--license", "mit"]
    result = subprocess.run(command, capture_output=True, text=True, env=hub.env(token=None), timeout=300)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: the Hub asks who you are: run `hf auth login`")
    assert "Traceback" not in result.stderr


def test_pull_says_what_is_missing(hub: HubServer, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    with pytest.raises(ValueError, match="there is no alice/absent, or it is not visible to you"):
        pull_run("alice/absent", tmp_path / "run")
    hub.api().create_repo("alice/bare")
    with pytest.raises(ValueError, match="alice/bare has no revision 'v9'"):
        pull_run("alice/bare", tmp_path / "run", revision="v9")
    with pytest.raises(ValueError, match=r"holds no last-checkpoint.*--student alice/bare --student_pretrained"):
        pull_run("alice/bare", tmp_path / "run")
    api = hub.api()
    state = json.dumps({"global_step": 2}).encode()
    api.upload_file(path_or_fileobj=state, path_in_repo="last-checkpoint/trainer_state.json", repo_id="alice/bare")
    api.update_repo_settings("alice/bare", gated="manual")
    with pytest.raises(ValueError, match="alice/bare is gated: ask for access on its page"):
        pull_run("alice/bare", tmp_path / "run", token=OTHER)
    with pytest.raises(ValueError, match=r"the last-checkpoint of alice/bare is damaged \(it has no manifest.json\)"):
        pull_run("alice/bare", tmp_path / "run")
    hub.stop()
    with pytest.raises(ConnectionError, match="the connection to the Hub broke .*; run the same command again"):
        pull_run("alice/bare", tmp_path / "run")
    hub.start()
    assert not (tmp_path / "run").exists()
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds checkpoint-2: choose another --output_dir"):
        pull_run("alice/bare", tmp_path / "run")
    assert os.listdir(tmp_path / "run") == ["checkpoint-2"]
