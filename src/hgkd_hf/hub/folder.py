"""The folder that is published: beside the student's weights its card, pictures, recipe, metrics and results."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import RevisionNotFoundError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from ..methods.base.distiller import Distiller
from ..visualize import curves_figure
from . import readme
from .export import export_student, extended_student, stock_student
from .papers import method_of
from .privacy import check_no_secrets
from .push import README, PushOptions, check_name, files_of, full_name, httpx, push_folder, readme_on_hub
from .sources import License
from .student_card import CARD_FILE, StudentCard

logger = logging.get_logger(__name__)

STUDENT_FOLDER, BEST_FOLDER = "student", "student-best"  # in a run's folder
CURVES = "curves.png"
_PUSHED = ".cache/hgkd_hf/pushed.json"  # what people had written when the folder was pushed last; itself not pushed


@contextmanager
def warn_only(what: str) -> Iterator[None]:
    """Let a failure be a warning that names `what`: nothing of a card is worth a run."""
    try:
        yield
    except Exception as error:
        logger.warning("%s could not be written (%s: %s); the run goes on.", what, type(error).__name__, error)


def describe_model(card: StudentCard, model: PreTrainedModel) -> None:
    """Fill in what the model itself tells: a student, or the distiller around one."""
    native = stock_student(model)
    card.student, card.has_decoder = type(native).__name__, extended_student(model) is not None
    card.parameters = native.num_parameters()
    card.num_classes = native.config.num_labels if card.student.endswith("ForImageClassification") else None
    if isinstance(model, Distiller):
        config, plain = model.config.to_dict(), PreTrainedConfig().to_dict()
        card.method = method_of(config)
        card.distillation = {k: v for k, v in config.items() if k not in plain and k not in _NOT_THE_METHOD}


_NOT_THE_METHOD = ("student_config", "dtype", "id2label", "label2id")


def write_student_folder(
    model: PreTrainedModel,
    folder: str | Path,
    image_processor: BaseImageProcessor,
    card: StudentCard,
    run: Path | None = None,
) -> Path:
    """Export a student and write everything else beside it; only the weights and the processor may fail.

    Args:
        model: the student, or the distiller around it.
        folder: created if need be.
        image_processor: of the student.
        card: what is known of it; gets the model's facts and the pictures that are there.
        run: folder with `metrics.jsonl`, if there is one.
    """
    folder = export_student(model, folder, image_processor)
    with warn_only("the model's description"):
        describe_model(card, model)
    if run is not None:
        add_run_files(folder, run, card)
    card.pictures = {name: what for name, what in card.pictures.items() if (folder / name).is_file()}
    write_card(folder, card)
    return folder


def add_run_files(folder: Path, run: Path, card: StudentCard) -> None:
    """Put a run's recipe (without local paths, teacher and data pinned), metrics and curves into a folder."""
    with warn_only("the recipe"):
        settings = card.to_dict()["settings"] | _pinned(card)
        settings = {k: v for k, v in settings.items() if v is not None and v not in ([], {}, "")}
        (folder / "recipe.yaml").write_text(readme.to_yaml(settings), encoding="utf-8")
    if (run / "metrics.jsonl").is_file():
        with warn_only("the metrics"):
            shutil.copyfile(run / "metrics.jsonl", folder / "metrics.jsonl")
        with warn_only("the picture of the curves"):
            curves_figure({card.name: run}).savefig(folder / CURVES, dpi=120)
            card.pictures[CURVES] = "Loss and kNN accuracy over the steps."


def _pinned(card: StudentCard) -> dict[str, str]:
    """The settings that name the commits of what a run was made of, as far as the Hub told them."""
    sources = {"teacher_revision": card.teacher, "dataset_revision": card.dataset, "student_revision": card.start}
    return {
        name: source.revision
        for name, source in sources.items()
        if name in card.settings and source is not None and source.on_hub and source.revision
    }


def write_card(folder: Path, card: StudentCard) -> None:
    """Write `card.json`, the result files and the README, into which it is merged."""
    with warn_only("the model card"):
        if card.license is None:
            card.settle_license()
        card.save(folder / CARD_FILE)
        for name, text in card.result_files().items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        (folder / README).write_text(readme.merge(card.render(), _local_readme(folder)), encoding="utf-8")


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
        PushError, ValueError, FileNotFoundError: as `push_folder`; or there is no card, or no licence.
    """
    folder, options = Path(folder), options or PushOptions()
    local = _local_readme(folder)

    def write(repo_id: str, on_hub: str | None) -> str:
        return render_merged(folder, repo_id, _edited_last(folder, local, on_hub), license)

    commit = push_folder(folder, repo_id, options, write, more_files, _again(folder, repo_id, options, license))
    if not options.create_pr:
        with warn_only("the record of the push"):
            record = folder / _PUSHED
            record.parent.mkdir(parents=True, exist_ok=True)
            text = _local_readme(folder) or ""
            marks = {"commit": commit.oid, "readme": _digest(text), "outside": _digest(readme.outside(text))}
            record.write_text(json.dumps(marks), encoding="utf-8")
    return commit


def _again(folder: Path, repo_id: str, options: PushOptions, license: License | None) -> str:
    """How a push that failed goes on: of a run's student by a command, with all that was asked for."""
    if folder.name not in (STUDENT_FOLDER, BEST_FOLDER):
        return "What is here is whole: push it again."
    command = ["python", "training/publish.py", str(folder.parent), "--repo_id", repo_id]
    command += ["--best"] if folder.name == BEST_FOLDER else []
    asked = license.metadata() if license is not None else {}
    command += [part for key, value in asked.items() for part in (f"--{key}", value)]
    return f"{folder} is whole; go on with: {shlex.join([*command, *options.flags()])}"


def preview_student(folder: Path, repo_id: str, options: PushOptions, license: License | None = None) -> str:
    """What `push_student` would push, as text: the target, every file with its size, and the README.

    Reads the README on the Hub if it can; sends and changes nothing.

    Raises:
        ValueError, FileNotFoundError: as `push_student`.
    """
    check_name(repo_id)
    repo_id, on_hub = _on_hub(repo_id, options)
    said = "There is none on the Hub yet, or it could not be read."
    if on_hub is not None:
        said = "The one on the Hub was merged into."
    text = render_merged(folder, repo_id, _edited_last(folder, _local_readme(folder), on_hub), license)
    files = files_of(folder)
    check_no_secrets(files.values())
    sizes = {name: path.stat().st_size for name, path in files.items()} | {README: len(text.encode())}
    target = {name: value for name, value in asdict(options).items() if value and name not in ("token", "message")}
    return "\n".join(
        [
            f"to {repo_id}" + "".join(f", {name} {value}" for name, value in target.items()),
            *(f"{size:>12,}  {name}" for name, size in sorted(sizes.items())),
            f"{sum(sizes.values()):>12,}  bytes in {len(sizes)} files, one commit: {options.message}",
            f"\n{README}: {said}\n\n{text}",
        ]
    )


def _on_hub(repo_id: str, options: PushOptions) -> tuple[str, str | None]:
    """The repository's full name and its README, as far as the Hub tells them."""
    api, readme_there = HfApi(token=options.token), None
    with suppress(OSError, httpx.TransportError):  # no token, no network: the name stays as it is
        repo_id = full_name(api.whoami(), repo_id)
    with suppress(OSError, httpx.TransportError):  # no such repository
        try:
            head = api.repo_info(repo_id, revision=options.revision).sha
        except RevisionNotFoundError:  # a push would begin the branch at main
            head = api.repo_info(repo_id).sha
        readme_there = readme_on_hub(api, repo_id, head)
    return repo_id, readme_there


def render_merged(folder: Path, repo_id: str, existing: str | None, license: License | None) -> str:
    """A folder's card for a repository, merged into an existing README; if that fails, the README as it is.

    Raises:
        ValueError: the licence is not settled.
        FileNotFoundError: there is no card.
    """
    card, metadata = StudentCard.load(folder / CARD_FILE), {}
    with suppress(ValueError):  # metadata that cannot be read tell no licence
        metadata = readme.split(existing or "")[0]
    card.settle_license(license, License.from_metadata(metadata))
    if card.license is None:
        raise ValueError(
            f"{card.license_reason}: choose a licence with --license, e.g. --license apache-2.0 (for `other`, also "
            f"--license_name and --license_link)."
        )
    with warn_only("the model card"):
        return readme.merge(card.render(repo_id), existing)
    return existing or ""


def _local_readme(folder: Path) -> str | None:
    path = folder / README
    return readme.read(path, f"in {folder}") if path.is_file() else None


def _edited_last(folder: Path, local: str | None, on_hub: str | None) -> str | None:
    """Which README to merge into: the Hub's, unless nobody touched that one since the last push from here."""
    if local is None or on_hub is None:
        return local if on_hub is None else on_hub
    pushed: dict[str, str] = {}
    with suppress(OSError, ValueError):
        pushed = json.loads((folder / _PUSHED).read_text(encoding="utf-8"))
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
