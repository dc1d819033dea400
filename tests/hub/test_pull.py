"""What a pulled repository says is data: no file of it lands outside, and nothing of it decides what leaves here."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import CommitOperationAdd
from safetensors.torch import save_file
from transformers import TrainerState

from hgkd_hf.checkpoints.whole_folders import complete_folder, fault
from hgkd_hf.cli.choices import parse_method
from hgkd_hf.cli.pull import main
from hgkd_hf.hub.pull import pull_run
from hgkd_hf.hub.recipe import METHOD_SETTINGS, SOURCES, TRAINING_SETTINGS, checked_recipe, settings_on_hub
from hgkd_hf.methods.base.method import Method
from hgkd_hf.methods.registry import METHODS
from hgkd_hf.training.arguments import DistillationArguments

from .server import HubServer
from .store import WRITER

REPO = "alice/run"
RECIPE = {"teacher": "alice/teacher", "dataset": "alice/dots", "student": "resnet-18", "mask_ratio": 0.5}
STATE = {"global_step": 2, "max_steps": 4, "epoch": 0.5, "log_history": [{"loss": 0.5, "step": 1}]}
CONFIG = {"model_type": "hgkd", "student_config": {"encoder_config": {"model_type": "resnet"}}}
ARGUMENTS = {"learning_rate": 0.1, "optim": "adamw_torch", "data_seed": None}
METRICS = '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n'
CARD = {"name": "mine", "run": {"seconds": 3.5, "steps": 2}, "results": {"this student": {"knn_accuracy": 0.5}}}


@pytest.fixture
def pushed_run(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`pushed_run(state=..., ...)`: put a run with a checkpoint into `REPO`, whole unless said otherwise.

    `tensors` are the bytes of its weights; `tampered` changes the manifest's mapping; `more` are files that it does
    not know.
    """
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.chdir(tmp_path)

    def push(
        state=STATE,
        config=CONFIG,
        arguments=ARGUMENTS,
        recipe=RECIPE,
        metrics=METRICS,
        card=CARD,
        index=None,
        tensors=None,
        tampered=None,
        more=(),
    ):
        partial = tmp_path / "made" / "checkpoint-2.partial"
        partial.mkdir(parents=True)
        save_file({"weight": torch.ones(2)}, partial / "model.safetensors")
        if tensors is not None:
            (partial / "model.safetensors").write_bytes(tensors)
        jsons = {"trainer_state.json": state, "config.json": config, "model.safetensors.index.json": index}
        jsons["training_args.json"] = arguments
        for name, content in jsons.items():
            if content is not None:
                (partial / name).write_text(content if isinstance(content, str) else json.dumps(content))
        made = complete_folder(partial)
        if tampered is not None:
            manifest = json.loads((made / "manifest.json").read_text())
            (made / "manifest.json").write_text(json.dumps({**manifest, "files": tampered(manifest["files"])}))
        files = {f"last-checkpoint/{path.name}": path.read_bytes() for path in made.iterdir()}
        files |= {f"last-checkpoint/{name}": b"{}" for name in more}
        files["recipe.yaml"] = (recipe if isinstance(recipe, str) else yaml.safe_dump(recipe)).encode()
        files |= {"metrics.jsonl": metrics.encode(errors="surrogateescape"), "card.json": json.dumps(card).encode()}
        hub.api().create_repo(REPO)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        hub.api().create_commit(REPO, operations, commit_message="Training in progress, step 2")

    return push


@pytest.fixture
def pull(capsys: pytest.CaptureFixture) -> Callable[[Path], str]:
    """`hgkd pull` in this process: `pull(output_dir)` gives what it prints."""

    def run(folder: Path) -> str:
        main([REPO, "--output_dir", str(folder)])
        return capsys.readouterr().out

    return run


def everything(folder: Path) -> set[str]:
    """What lies in a folder, but the client's cache and what a test has made."""
    kept = (folder / "cache", folder / "made")
    return {str(path) for path in folder.rglob("*") if not any(path.is_relative_to(other) for other in kept)}


def command_of(printed: str) -> list[str]:
    """The arguments of the command that is printed last."""
    return shlex.split(printed.strip().splitlines()[-1])[2:]


def test_a_run_arrives_whole(pushed_run, pull, tmp_path):
    pushed_run()
    printed = pull(tmp_path / "my runs" / "mine")
    run = tmp_path / "my runs" / "mine"
    assert sorted(path.name for path in run.iterdir()) == ["card.json", "checkpoint-2", "metrics.jsonl", "recipe.yaml"]
    assert fault(run / "checkpoint-2") is None
    assert not any(path.is_symlink() for path in run.rglob("*"))
    state = TrainerState.load_from_json(str(run / "checkpoint-2" / "trainer_state.json"))
    assert (state.global_step, state.max_steps, state.epoch, state.log_history) == tuple(
        STATE[name] for name in ("global_step", "max_steps", "epoch", "log_history")
    )
    assert (run / "metrics.jsonl").read_text() == METRICS
    assert yaml.safe_load((run / "recipe.yaml").read_text()) == RECIPE
    assert "mask_ratio: 0.5" in printed
    assert "Left out" not in printed
    method, training = parse_method(command_of(printed))
    assert (method.dataset, method.teacher, method.resume, training.output_dir) == (
        *("alice/dots", "alice/teacher", True, str(run)),
    )


@pytest.mark.parametrize(("place", "folder"), [("cache", "cache"), ("output_dir", "runs")])
def test_more_than_a_disk_holds_is_not_fetched(pushed_run, tmp_path, monkeypatch, place, folder):
    pushed_run(more=["huge.json"])
    full = tmp_path / folder
    full.mkdir(exist_ok=True)
    free = {full: 1000}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free.get(path, 10**12)))
    monkeypatch.setattr("hgkd_hf.hub.pull.snapshot_download", lambda *args, **kwargs: pytest.fail("it was fetched"))
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=rf"alice/run has 0.0 GB, but the disk of {full} has 0.0 GB free: make room"):
        pull_run(REPO, tmp_path / "runs" / "mine")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("field", ["global_step", "best_global_step"])
@pytest.mark.parametrize(
    "value",
    ["1/../../../escaped/yaml", "../escaped", "2", True, -1, 2.0, 1.5, [2], {"a": 1}, 10**30, "", "~"],
    ids=repr,
)
def test_a_step_is_a_whole_number(pushed_run, tmp_path, field, value):
    pushed_run(state={**STATE, field: value})
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=f"the last-checkpoint of alice/run is damaged .{field} in its"):
        pull_run(REPO, tmp_path / "runs" / "mine")
    assert everything(tmp_path) == before


def renamed(name: str) -> dict:
    """A manifest that gives the weights another name."""
    return {"tampered": lambda files: {name if file == "model.safetensors" else file: files[file] for file in files}}


ENTRY = {"size": 2, "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}  # of {}
SIZE = {"size": 2}
LONG = b'{"weight":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'
BAD = {
    "empty manifest": ({"tampered": lambda files: {}}, "lists no file"),
    "manifest that is a list": ({"tampered": list}, "lists no file"),
    "unlisted file": ({"more": ["more.json"]}, "'more.json' is not in its manifest"),
    "listed, not there": (
        {"tampered": lambda files: {**files, "a.json": ENTRY}},
        "'a.json' is in its manifest.json alone",
    ),
    "entry without checksum": ({"tampered": lambda files: dict.fromkeys(files, SIZE)}, "no size and SHA-256"),
    "entry that is no mapping": ({"tampered": lambda files: dict.fromkeys(files, 2)}, "no size and SHA-256"),
    "other content": ({"tampered": lambda files: dict.fromkeys(files, ENTRY)}, "bytes instead of 2"),
    "upwards": (renamed("../../model.safetensors"), "alone|not in its manifest"),
    "absolute": (renamed("/tmp/model.safetensors"), "alone|not in its manifest"),
    "of Windows": (renamed("..\\model.safetensors"), "alone|not in its manifest"),
    "code": ({"more": ["modeling.py"]}, "'modeling.py' is not a checkpoint file"),
    "pickle": ({"more": ["optimizer.pt"]}, "'optimizer.pt' is not a checkpoint file"),
    "hidden": ({"more": [".git.json"]}, "is not a checkpoint file"),
    "backslash": ({"more": ["..\\up.json"]}, "is not a checkpoint file"),
    "long": ({"more": ["a" * 300 + ".json"]}, "is not a checkpoint file"),
    "deep": ({"more": ["a/" * 9 + "a.json"]}, "is not a checkpoint file"),
    "weights elsewhere": ({"index": {"weight_map": {"weight": "../../x.safetensors"}}}, "names '../../x.safetensors'"),
    "weights nowhere": ({"index": {"weight_map": "x"}}, "names None"),
    "remote code": (
        {"config": {**CONFIG, "student_config": {"encoder_config": {"auto_map": {"AutoModel": "a/b--c.D"}}}}},
        "asks for code",
    ),
    **{
        f"code by {key}": ({"config": {**CONFIG, "student_config": {"encoder_config": {key: value}}}}, "asks for code")
        for key, value in {
            "custom_pipelines": {"x": {"impl": "a.B"}},
            "attn_implementation": "mallory/kernel:f",
            "_attn_implementation": {"": "flash|mallory/kernel"},
            "experts_implementation": "mallory/kernel@main",
        }.items()
    },
    "base of an adapter": ({"more": ["adapter_config.json"]}, "'adapter_config.json' is not a checkpoint file"),
    "header beyond its file": (
        {"tensors": (2**40).to_bytes(8, "little") + b"{}"},
        "model.safetensors is not readable",
    ),
    "tensor beyond its file": (
        {"tensors": len(LONG).to_bytes(8, "little") + LONG + bytes(4)},
        "model.safetensors is not readable",
    ),
    "no tensors": ({"tensors": b""}, "model.safetensors is not readable"),
    "recipe of a wrong tag": ({"recipe": "split: !!timestamp x"}, "recipe.yaml is not readable"),
    "recipe of an empty number": ({"recipe": "split: !!int ''"}, "recipe.yaml is not readable"),
    "recipe with a key twice": ({"recipe": "split: a\nsplit: b"}, "recipe.yaml is not readable"),
    "metrics that are no text": ({"metrics": "\udcff"}, "metrics.jsonl is not readable"),
    "state without a step": ({"state": {"epoch": 1.0}}, "global_step in its trainer_state.json is None"),
    "no arguments": ({"arguments": None}, "it has no training_args.json"),
    "arguments that are no mapping": ({"arguments": "[]"}, "training_args.json is not readable"),
    "state that is no JSON": ({"state": "{"}, "trainer_state.json is not readable"),
    "state that is nested": ({"state": "[" * 100_000}, "trainer_state.json is not readable"),
    "recipe that is no mapping": ({"recipe": "[1]"}, "recipe.yaml is not readable"),
    "recipe of aliases": ({"recipe": "a: &a [1, 2]\nb: *a"}, "recipe.yaml is not readable"),
    "recipe of no method": ({"recipe": {"method": "../x"}}, "its recipe is of the method '../x'"),
    "metrics without steps": ({"metrics": '{"loss": 1}\n'}, "has no step"),
    "metrics that are no JSON": ({"metrics": "loss\n"}, "metrics.jsonl is not readable"),
}


def test_other_files_of_the_repository_are_let_be(pushed_run, hub, tmp_path):
    pushed_run()
    files = [CommitOperationAdd(name, b"{}") for name in ("a" * 300 + ".json", "up.py", "last-checkpoint.py")]
    hub.api().create_commit(REPO, files, commit_message="More")
    assert pull_run(REPO, tmp_path / "mine").checkpoint == tmp_path / "mine" / "checkpoint-2"


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_run_is_refused_in_a_sentence(pushed_run, tmp_path, name):
    changes, said = BAD[name]
    pushed_run(**changes)
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=said) as error:
        pull_run(REPO, tmp_path / "runs" / "mine")
    assert "\n" not in str(error.value)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.jsonl", "card.json", "identity.json", "checkpoint-7"])
def test_nothing_of_another_run_is_replaced(pushed_run, tmp_path, name):
    pushed_run()
    (tmp_path / "mine" / "checkpoint-8.partial").mkdir(parents=True)
    (tmp_path / "mine" / name).symlink_to(tmp_path / "nowhere")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=f"mine holds {name}: choose another --output_dir"):
        pull_run(REPO, tmp_path / "mine")
    assert everything(tmp_path) == before


def test_no_path_of_other_files_is_kept(pushed_run, tmp_path):
    private = tmp_path / "private"
    private.mkdir()
    paths = {
        "best_model_checkpoint": str(private),
        "trial_name": "../x",
        "stateful_callbacks": {"A": {"args": {"a": 1}}},
    }
    metrics = '{"step": 1, "loss": 0.5, "../x": 1, "file": "../y", "html": "<script>"}\n'
    card = {**CARD, "pictures": {"../z.png": "x"}, "command": "rm -r ~", "tags": ["<b>"], "dataset": {"name": "/etc"}}
    card["results"] = {"this student": {"knn_accuracy": 0.5, "accuracy": "<b>"}, "<b>": {"accuracy": 1}}
    arguments = {
        **ARGUMENTS,
        "output_dir": str(private),
        "hub_token": "x",
        "lr_scheduler_type": "../x",
        "seed": [["/"]],
    }
    pushed_run(state={**STATE, **paths}, arguments=arguments, metrics=metrics, card=card)
    checkpoint = pull_run(REPO, tmp_path / "mine").checkpoint
    assert json.loads((checkpoint / "training_args.json").read_text()) == ARGUMENTS
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    assert (state.best_model_checkpoint, state.trial_name, state.stateful_callbacks) == (None, None, {})
    assert json.loads((tmp_path / "mine" / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5}
    assert json.loads((tmp_path / "mine" / "card.json").read_text()) == {
        "run": {"seconds": 3.5},
        "results": {"this student": {"knn_accuracy": 0.5}},
    }


PUBLISHES = {
    "push_to_hub": True,
    "hub_model_id": "mallory/loot",
    "hub_token": "hf_mallory",
    "hub_private_repo": False,
    "hub_strategy": "all_checkpoints",
    "hub_revision": "loot",
    "report_to": ["wandb"],
    "project": "loot",
    "trackio_space_id": "mallory/loot",
    "allow_changes": True,
    "license": "mit",
}


def test_a_recipe_does_not_decide_what_leaves_the_machine(pushed_run, pull, tmp_path):
    pushed_run(recipe={**RECIPE, **PUBLISHES, "output_dir": "/tmp/elsewhere", "learning_rate": 0.25})
    printed = pull(tmp_path / "mine")
    _, training = parse_method(command_of(printed))
    default = DistillationArguments(output_dir=str(tmp_path / "mine"))
    for name in PUBLISHES:
        assert getattr(training, name) == getattr(default, name), name
    for name, value in PUBLISHES.items():
        assert (f"{name}: {value!a} is for the command line alone" in printed) == bool(value)
    assert training.output_dir == str(tmp_path / "mine")
    assert training.learning_rate == 0.25


def test_a_new_setting_of_all_methods_is_decided_upon():
    """Whether a recipe from the Hub may give it; if not, it belongs here."""
    command_line = {"resume", "dry_run", "allow_remote_images"}
    assert {item.name for item in fields(Method)} == {*METHOD_SETTINGS.split(), *command_line}


@pytest.mark.parametrize("method", METHODS)
def test_every_other_setting_is_the_command_lines(tmp_path, method):
    names = {item.name for kind in (METHODS[method], DistillationArguments) for item in fields(kind)}
    allowed = settings_on_hub(method)
    assert names >= allowed >= {*TRAINING_SETTINGS.split(), *METHOD_SETTINGS.split()}
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({**dict.fromkeys(names, "unusual"), **dict.fromkeys(SOURCES, "a/b"), "method": method})
    )
    taken, left_out = checked_recipe(path)
    assert taken.keys() == allowed
    assert left_out.keys() == names - allowed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset", "photos"),
        ("dataset", "/home/victim/photos"),
        ("dataset", "../photos"),
        ("dataset", "local/folder"),
        ("dataset", "https://example.org/x"),
        ("teacher", "~/teacher"),
        ("teacher_cache", "/data/cache"),
        ("allow_remote_images", True),
        ("teacher", "alice/teacher/sub"),
        ("teacher", {"model_type": "vit"}),
        ("teacher", ["alice/teacher", "/home/victim/teacher"]),
        ("student", "C:\\student"),
        ("student", '{"model_type": "resnet", "backbone": "../x"}'),
        ("student", {"model_type": "resnet", "_name_or_path": "/etc"}),
        ("student", "{"),
        ("split", "../train"),
        ("image_column", "image\n--push_to_hub"),
        ("teacher_layers", [1, "--push_to_hub", "--hub_model_id=mallory/loot"]),
        ("teacher_layers", ["-x"]),
        ("decoder", "--push_to_hub"),
        ("optim", "/tmp/optimizer"),
        ("lr_scheduler_kwargs", {"a": {"b": "../x"}}),
        ("mask_ratio", float("nan")),
        ("--push_to_hub", True),
        ("push_to_hub=True --a", 1),
    ],
)
def test_values_that_could_be_paths_or_flags_are_left_out(pushed_run, pull, tmp_path, key, value):
    (tmp_path / "local" / "folder").mkdir(parents=True)
    pushed_run(recipe={**RECIPE, key: value})
    printed = pull(tmp_path / "mine")
    assert key not in yaml.safe_load((tmp_path / "mine" / "recipe.yaml").read_text())
    assert "Left out of it:" in printed
    command = command_of(printed)
    assert (f"--{key}" in command) == (key in SOURCES)
    if key in SOURCES:  # the user's to name
        assert command[command.index(f"--{key}") + 1] == key.upper()
    if key != "teacher_cache":  # which would be opened at once
        parse_method(["alice/teacher" if word == "TEACHER" else word for word in command])


def test_control_characters_are_not_printed(pushed_run, pull, tmp_path):
    pushed_run(recipe={**RECIPE, "split": "\x1b[2Jtrain", "a\x1b]0;b": "x" * 5000})
    printed = pull(tmp_path / "mine")
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) < 400
