"""A run on the Hub, fetched to be resumed; everything in it is data that is checked first (`untrusted.py`)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.trainer import TRAINER_STATE_NAME

from ..checkpoints.folders import ARGUMENTS_FILE, remove_partial
from ..checkpoints.identity import FILE as IDENTITY_FILE
from ..checkpoints.run_files import METRICS_FILE, RECIPE_FILE
from ..checkpoints.whole_folders import PARTIAL, complete_folder
from . import readme
from .publishing import LAST_CHECKPOINT
from .push import explain, httpx
from .recipe import checked_arguments, checked_recipe
from .student_card import CARD_FILE
from .untrusted import check_names, checked_card, checked_files, checked_metrics, checked_state

RUN_FILES = (RECIPE_FILE, METRICS_FILE, CARD_FILE)


@dataclass(frozen=True)
class PulledRun:
    """What `pull_run` has written.

    Attributes:
        checkpoint: its folder, `run/checkpoint-<step>`.
        commit: of the Hub.
        recipe: the settings of `run/recipe.yaml`.
        left_out: settings of the recipe on the Hub that were not taken -> why.
    """

    checkpoint: Path
    commit: str
    recipe: dict[str, Any]
    left_out: dict[str, str]


def pull_run(repo_id: str, run: str | Path, revision: str | None = None, token: str | None = None) -> PulledRun:
    """Fetch the last checkpoint of a run that was pushed with `hub_strategy checkpoint`, to resume it.

    Nothing that the repository holds decides where a file is written or read, or what leaves this machine.

    Args:
        repo_id: `user/name`.
        run: the run's new folder; must not hold a run, or a part of one.
        revision: branch, tag or commit; the files are all of one commit.
        token: of the Hub.

    Raises:
        ValueError: there is no such repository or revision, no whole checkpoint in it, something in it that a run does
            not have, or a run in `run` already.
        ConnectionError: the Hub cannot be reached; what arrived is kept.
    """
    run = Path(run)
    mine = [*run.glob("checkpoint-*[0-9]"), *(run / name for name in (*RUN_FILES, IDENTITY_FILE))]
    if found := [path.name for path in sorted(mine) if os.path.lexists(path)]:
        raise ValueError(f"{run} holds {found[0]}: choose another --output_dir.")
    remove_partial(run)
    ask = partial(HfApi(token=token).model_info, repo_id, revision=revision, files_metadata=True)
    info = _reach(repo_id, revision, ask)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    listed = {name.removeprefix(f"{LAST_CHECKPOINT}/") for name in sizes if name.startswith(f"{LAST_CHECKPOINT}/")}
    if TRAINER_STATE_NAME not in listed:
        raise ValueError(
            f"{repo_id} holds no {LAST_CHECKPOINT}, as it was not pushed by `hgkd distill --hub_strategy checkpoint`: "
            f"start a new run from its weights with `hgkd distill --student {repo_id} --student_pretrained`."
        )
    with _refused(f"the {LAST_CHECKPOINT} of {repo_id} is damaged"):
        check_names(listed)
    wanted = [*RUN_FILES, *(f"{LAST_CHECKPOINT}/{name}" for name in listed)]
    _check_space(sum(sizes.get(name, 0) for name in wanted), run, repo_id)
    settings = {"revision": info.sha, "token": token, "allow_patterns": wanted}
    found = Path(_reach(repo_id, revision, lambda: snapshot_download(repo_id, **settings)))
    last = found / LAST_CHECKPOINT
    with _refused(f"the {LAST_CHECKPOINT} of {repo_id} is damaged"):
        files = checked_files(listed, last)
        if ARGUMENTS_FILE not in files:
            raise ValueError(f"it has no {ARGUMENTS_FILE}")
        state, arguments = checked_state(last / TRAINER_STATE_NAME), checked_arguments(last / ARGUMENTS_FILE)
    recipe, left_out, texts = {}, {}, {}
    with _refused(f"the run of {repo_id} cannot be resumed"):
        if (found / RECIPE_FILE).is_file():
            recipe, left_out = checked_recipe(found / RECIPE_FILE)
            texts[RECIPE_FILE] = readme.to_yaml(recipe)
        if (found / METRICS_FILE).is_file():
            texts[METRICS_FILE] = checked_metrics(found / METRICS_FILE)
        if (found / CARD_FILE).is_file():
            texts[CARD_FILE] = json.dumps(checked_card(found / CARD_FILE), indent=1) + "\n"

    begun = run / f"checkpoint-{state.global_step}{PARTIAL}"
    for name in files:
        (begun / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(last / name, begun / name)
    state.save_to_json(str(begun / TRAINER_STATE_NAME))
    (begun / ARGUMENTS_FILE).write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")
    for name, text in texts.items():
        (run / name).write_text(text, encoding="utf-8")
    return PulledRun(complete_folder(begun), info.sha, recipe, left_out)


def _check_space(size: int, run: Path, repo_id: str) -> None:
    """Refuse what the disks of the cache and of the run do not hold, before a byte of it is fetched."""
    for folder in (Path(constants.HF_HUB_CACHE), run.absolute()):
        there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        if size > (free := shutil.disk_usage(there).free):
            raise ValueError(
                f"the {LAST_CHECKPOINT} of {repo_id} has {size / 1e9:,.1f} GB, but the disk of {there} has "
                f"{free / 1e9:,.1f} GB free: make room, or choose another --output_dir or HF_HUB_CACHE."
            )


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Say of what a check refuses what it belongs to, and what to do."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what} ({error}): choose another --revision.") from None


def _reach(repo_id: str, revision: str | None, ask: Callable[[], Any]) -> Any:
    """What the Hub answers; what can be in the way is said in a sentence."""
    try:
        return ask()
    except GatedRepoError:
        raise ValueError(f"{repo_id} is gated: ask for access on its page, then run `hf auth login`.") from None
    except RevisionNotFoundError:
        raise ValueError(f"{repo_id} has no revision {revision!r}: correct --revision.") from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"there is no {repo_id}, or it is not visible to you: correct the name or run `hf auth login`."
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, httpx.TransportError) as error:
        raise ConnectionError(
            f"{explain(error, repo_id) or error}; run the same command again to continue."
        ) from error
