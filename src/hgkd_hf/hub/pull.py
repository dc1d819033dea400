"""A run on the Hub, fetched to go on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..checkpoints.folders import remove_partial
from ..checkpoints.whole_folders import PARTIAL, fault
from .publishing import LAST_CHECKPOINT
from .push import explain, httpx

RUN_FILES = ("recipe.yaml", "metrics.jsonl", "card.json")


def pull_run(repo_id: str, run: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """Fetch the last checkpoint of a run that was pushed with `hub_strategy checkpoint`, to go on with it.

    Args:
        repo_id: `user/name`.
        run: the run's new folder; must not hold checkpoints.
        revision: branch, tag or commit; the files are all of one commit.
        token: of the Hub.

    Returns:
        The checkpoint's folder, `run/checkpoint-<step>`.

    Raises:
        ValueError: there is no such repository or revision, no whole checkpoint in it, or one in `run` already.
        ConnectionError: the Hub cannot be reached; what arrived is kept.
    """
    run = Path(run)
    remove_partial(run)
    if any(run.glob("checkpoint-*")):
        raise ValueError(f"{run} holds {min(run.glob('checkpoint-*')).name}: choose another --output_dir.")
    found = _download(repo_id, revision, token)
    last = found / LAST_CHECKPOINT
    if not (last / "trainer_state.json").is_file():
        raise ValueError(
            f"{repo_id} holds no {LAST_CHECKPOINT}, as it was not pushed with --hub_strategy checkpoint: begin a new "
            f"run from its weights with --student {repo_id} --student_pretrained."
        )
    wrong = fault(last)
    if wrong is not None:
        raise ValueError(f"the {LAST_CHECKPOINT} of {repo_id} is damaged ({wrong}): choose another --revision.")
    step = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    for name in RUN_FILES:
        if (found / name).is_file():
            run.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found / name, run / name)
    partial = Path(shutil.copytree(last, run / f"checkpoint-{step}{PARTIAL}"))
    return partial.rename(run / f"checkpoint-{step}")


def _download(repo_id: str, revision: str | None, token: str | None) -> Path:
    """The folder with the run's files, all of one commit."""
    try:
        commit = HfApi(token=token).model_info(repo_id, revision=revision).sha
        patterns = [f"{LAST_CHECKPOINT}/*", *RUN_FILES]
        return Path(snapshot_download(repo_id, revision=commit, token=token, allow_patterns=patterns))
    except GatedRepoError:
        raise ValueError(f"{repo_id} is gated: ask for access on its page, then run `hf auth login`.") from None
    except RevisionNotFoundError:
        raise ValueError(f"{repo_id} has no revision {revision!r}: correct --revision.") from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"there is no {repo_id}, or it is not visible to you: correct the name or run `hf auth login`."
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, httpx.TransportError) as error:
        raise ConnectionError(f"{explain(error, repo_id)}; the same command goes on.") from error
