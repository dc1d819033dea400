"""A student's folder to the Hub: never over another model unasked, the README merged, shown before if wanted."""

from __future__ import annotations

import hashlib
import json
import shlex
import tempfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from ..checkpoints.run_files import BEST_FOLDER, MODEL_FOLDER, STUDENT_FOLDER
from ..training.callbacks import warn_only
from . import readme
from .folder import write_student_folder
from .privacy import check_no_secrets
from .push import Head, PushOptions, check_name, files_of, full_name, httpx, push_folder
from .sources import License, license_of
from .student_card import CARD_FILE, StudentCard
from .untrusted import shown

logger = logging.get_logger(__name__)

_PUSHED = ".cache/hgkd_hf/pushed.json"  # what people had written when the folder was pushed last; itself not pushed


def push_student(
    folder: str | Path,
    repo_id: str,
    options: PushOptions | None = None,
    license: License | None = None,
    more_files: dict[str, Path] | None = None,
) -> CommitInfo:
    """Push a student's folder (see `push_folder`), its card rendered for the repository and merged into the README.

    Args:
        folder: with `card.json`.
        repo_id: `user/name`.
        options: see `PushOptions`.
        license: None: what the README on the Hub says, or what teacher and data decide.
        more_files: see `push_folder`.

    Raises:
        PushError, ValueError, FileNotFoundError: as `push_folder`; or there is no card, or no licence, or the
            repository holds another model and `options.overwrite` is not set.
    """
    folder, options = Path(folder), options or PushOptions()
    local = readme.read_local(folder)

    def write(head: Head) -> str:
        if not options.overwrite and not _pushed_before(folder, head.repo_id):
            refuse_another_model(head, StudentCard.load(folder / CARD_FILE), {*files_of(folder), *(more_files or ())})
        return render_merged(folder, head.repo_id, _edited_last(folder, local, head.readme()), license)

    commit = push_folder(folder, repo_id, options, write, more_files, _again(folder, repo_id, options, license))
    if not options.create_pr:
        with warn_only("the record of the push"):
            record = folder / _PUSHED
            record.parent.mkdir(parents=True, exist_ok=True)
            text = readme.read_local(folder) or ""
            marks = {"commit": commit.oid, "readme": _digest(text), "outside": _digest(readme.outside(text))}
            record.write_text(json.dumps(marks | {"repo_id": commit.repo_url.repo_id}), encoding="utf-8")
    return commit


def refuse_another_model(
    head: Head, card: StudentCard, files: Collection[str], remedy: str = "choose another --repo_id, or add --overwrite"
) -> None:
    """Refuse to push over a model that is no earlier state of this one: of another method, network, teacher or data.

    Args:
        head: what the repository holds.
        card: of the student.
        files: their paths in the repository.
        remedy: what to do, the sentence's end.

    Raises:
        ValueError: it holds another model; the sentence says what the push would replace, and what leave.
    """
    replaced, left = changes_on_hub(head, files)
    if (replaced or left) and not is_earlier_state(head, card):
        raise ValueError(
            f"{head.repo_id} holds another model: a push would replace {_some(replaced)} and leave {_some(left)}; "
            f"{remedy}."
        )


def changes_on_hub(head: Head, files: Collection[str]) -> tuple[list[str], list[str]]:
    """Which files of a repository a push of `files` replaces and which it leaves, but those that every one has."""
    there = head.files - {readme.FILE, ".gitattributes", "LICENSE"}
    return sorted(there.intersection(files)), sorted(there.difference(files))


def is_earlier_state(head: Head, card: StudentCard) -> bool:
    """Whether a repository holds the student of a card: the same method, network, teacher and data."""
    path = head.read(CARD_FILE)
    if path is None:
        return False
    try:
        theirs = StudentCard.load(path)
    except ValueError:
        return False
    return _subject(theirs) == _subject(card)


def _subject(card: StudentCard) -> tuple[str | None, ...]:
    sources = (card.dataset, card.start if card.task else None, *card.teachers)
    return card.method, card.student, *(source and source.name for source in sources)


def _some(names: Sequence[str]) -> str:
    """A few names in a sentence."""
    names = [name if len(name) < 80 and name.isprintable() else shown(name) for name in names]
    more = f" and {len(names) - 4} more" if len(names) > 5 else ""
    return ", ".join(names[: 4 if more else 5]) + more or "nothing"


def _again(folder: Path, repo_id: str, options: PushOptions, license: License | None) -> str:
    """How a push that failed is resumed: of a run's model by a command, with all that was asked for."""
    if folder.name not in (STUDENT_FOLDER, BEST_FOLDER, MODEL_FOLDER):
        return "What is here is complete: push it again."
    command = ["hgkd", "publish", str(folder.parent), "--repo_id", repo_id]
    command += ["--best"] if folder.name == BEST_FOLDER else []
    asked = license.metadata() if license is not None else {}
    command += [part for key, value in asked.items() for part in (f"--{key}", value)]
    return f"{folder} is complete; resume with: {shlex.join([*command, *options.flags()])}"


_NOT_SHOWN = ("token", "message", "repo_type")  # of a preview


def preview_student(folder: Path, repo_id: str, options: PushOptions, license: License | None = None) -> str:
    """What `push_student` would push, as text: the target, every file with its size, and the README.

    Reads the repository if it can; sends and changes nothing.

    Raises:
        ValueError, FileNotFoundError: as `push_student`, but for another model in the repository, which is told.
    """
    check_name(repo_id)
    files, said, on_hub, told = files_of(folder), "There is none on the Hub yet, or it could not be read.", None, []
    api = HfApi(token=options.token)
    with suppress(OSError, httpx.TransportError):  # no token, no network: the name stays as it is
        repo_id = full_name(api.whoami(), repo_id)
    with suppress(OSError, httpx.TransportError):  # no such repository
        head = Head.of(api, repo_id, options)
        on_hub = head.readme()
        replaced, left = changes_on_hub(head, files)
        told = [f"replaces {_some(replaced)}; leaves {_some(left)}"] if replaced or left else []
        if not options.overwrite and not _pushed_before(folder, repo_id):
            try:
                refuse_another_model(head, StudentCard.load(folder / CARD_FILE), files)
            except ValueError as error:
                told = [f"not as it is: {error}"]
    if on_hub is not None:
        said = "The one on the Hub was merged into."
    text = render_merged(folder, repo_id, _edited_last(folder, readme.read_local(folder), on_hub), license)
    check_no_secrets(files.values())
    sizes = {name: path.stat().st_size for name, path in files.items()} | {readme.FILE: len(text.encode())}
    target = {name: value for name, value in asdict(options).items() if value and name not in _NOT_SHOWN}
    return "\n".join(
        [
            f"to {repo_id}" + "".join(f", {name} {value}" for name, value in target.items()),
            *told,
            *(f"{size:>12,}  {name}" for name, size in sorted(sizes.items())),
            f"{sum(sizes.values()):>12,}  bytes in {len(sizes)} files, one commit: {options.message}",
            f"\n{readme.FILE}: {said}\n\n{text}",
        ]
    )


def _pushed_before(folder: Path, repo_id: str) -> bool:
    """Whether this folder was pushed to this repository before."""
    return _record(folder).get("repo_id") == repo_id


def _record(folder: Path) -> dict[str, str]:
    """What the last push of a folder has noted in it."""
    with suppress(OSError, ValueError):
        return json.loads((folder / _PUSHED).read_text(encoding="utf-8"))
    return {}


def render_merged(folder: Path, repo_id: str, existing: str | None, license: License | None) -> str:
    """A folder's card for a repository, merged into an existing README; if that fails, the README as it is.

    Raises:
        ValueError: the licence is not settled.
        FileNotFoundError: there is no card.
    """
    card = StudentCard.load(folder / CARD_FILE)
    card.settle_license(license, license_of(existing))
    if card.license is None:
        raise ValueError(
            f"{card.license_reason}: choose a licence with --license, e.g. --license apache-2.0 (`other` needs a "
            f"name and a link: `hgkd publish --license_name ... --license_link ...`)."
        )
    with warn_only("the model card"):
        return readme.merge(card.render(repo_id), existing)
    return existing or ""


def _edited_last(folder: Path, local: str | None, on_hub: str | None) -> str | None:
    """Which README to merge into: the Hub's, unless nobody touched that one since the last push from here."""
    if local is None or on_hub is None:
        return local if on_hub is None else on_hub
    pushed = _record(folder)
    if _digest(on_hub) == pushed.get("readme"):
        return local
    with suppress(ValueError):
        here, there = readme.outside(local), readme.outside(on_hub)
        if here and not there:
            return local
        if here not in ("", there) and _digest(here) != pushed.get("outside"):
            logger.warning("The README was edited on the Hub and in %s: the Hub's text is pushed.", folder)
    return on_hub


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def push_to_hub(
    model: PreTrainedModel,
    repo_id: str,
    image_processor: BaseImageProcessor,
    card: StudentCard | None = None,
    license: License | None = None,
    options: PushOptions | None = None,
) -> CommitInfo:
    """Push a student as a stock checkpoint with its card, without a run's folder.

    Args:
        model: the student, or the distiller around it.
        repo_id: `user/name`.
        image_processor: of the student.
        card: what is known beside the model itself.
        license: needed unless the card's teacher and data decide it.
        options: see `PushOptions`.

    Raises:
        PushError, ValueError: see `push_student`.
    """
    card = card or StudentCard(name=repo_id.split("/")[-1])
    with tempfile.TemporaryDirectory() as folder:
        write_student_folder(model, folder, image_processor, card)
        return push_student(folder, repo_id, options, license)
