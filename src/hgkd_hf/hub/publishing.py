"""How a trainer publishes: at its end, or at every checkpoint in the background, always one commit with the card."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitInfo, HfApi
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import HubStrategy, TrainOutput
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from ..checkpoints.folders import newest_checkpoint
from ..visualize import prediction_figure
from .callback import CardCallback
from .export import student_image_processor
from .folder import STUDENT_FOLDER, push_student, warn_only, write_student_folder
from .push import PushError, PushOptions, check_access, files_of
from .sources import License
from .student_card import STUDENT, StudentCard

logger = logging.get_logger(__name__)

SNAPSHOT, LAST_CHECKPOINT = ".push", "last-checkpoint"
PREDICTIONS = "predictions.png"


class PublishingTrainer(Trainer):
    """A trainer whose model on the Hub is the student, stock at the root, with a card that tells of the run.

    `push_to_hub`, `hub_model_id`, `hub_strategy` and so on mean what they mean in `TrainingArguments`; `license` is
    the student's. A push that fails while the training runs is a warning.

    Attributes:
        card: what is known of the student; a callback fills it.
    """

    card: StudentCard

    def use_card(self, train_dataset: Dataset, knn_datasets: tuple[Dataset, Dataset] | None) -> CardCallback:
        """Begin the card; the callback that fills it is to be added to the trainer."""
        self.card = StudentCard(name="")
        self.card_callback = CardCallback(self.card, train_dataset, knn_datasets)
        return self.card_callback

    @property
    def student_license(self) -> License | None:
        """The licence that was asked for."""
        return License(self.args.license) if self.args.license else None

    def export_student(
        self,
        folder: str | Path | None = None,
        model: PreTrainedModel | None = None,
        results: dict[str, float] | None = None,
    ) -> Path:
        """Write the student as it is published.

        Args:
            folder: default: `student/` in the run's folder.
            model: default: the one that is trained.
            results: its figures, if they are not those of the last evaluation.
        """
        run = Path(self.args.output_dir)
        folder = Path(folder or run / STUDENT_FOLDER)
        self.card.name = self.card.name or run.absolute().name
        card = self.card
        if results is not None:
            card = replace(card, results=card.results | {STUDENT: results})
        if model is None:
            model = self.accelerator.unwrap_model(self.model)
            with warn_only("the picture of the predictions"):
                self._draw_predictions(model, folder)
        config, processor = model.config, self.processing_class
        if processor is None:
            processor = student_image_processor(config.image_size, config.image_mean, config.image_std)
        return write_student_folder(model, folder, processor, card, run)

    def _draw_predictions(self, model: PreTrainedModel, folder: Path) -> None:
        """Of four training images, for methods that predict a teacher's features at hidden cells."""
        if model.config.model_type != "hgkd" or not model.config.feature_weight:
            return
        samples = list(islice(iter(self.train_dataset), 4))
        batch = {name: value.to(self.args.device) for name, value in self.data_collator(samples).items()}
        folder.mkdir(parents=True, exist_ok=True)
        with self.compute_loss_context_manager():
            shown = (batch.get(name) for name in ("pixel_values", "bool_masked_pos", "teacher_features"))
            figure = prediction_figure(model, *shown)
        figure.savefig(folder / PREDICTIONS, dpi=100)
        self.card.pictures[PREDICTIONS] = "What the student sees, and what it predicts of its teacher's features."

    def create_model_card(self, *args, **kwargs) -> None:
        """The card is part of `export_student`: this writes that folder."""
        if self.is_world_process_zero():
            self.export_student()

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Settle the repository's name; `check_publishing` asks the Hub, a push creates the repository."""
        self.push_in_progress, self._may_publish = None, False
        self.hub_model_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name

    def check_publishing(self, token: str | None = None) -> None:
        """Find out before the training whether the student can be published, once the card knows its sources.

        Raises:
            PushError: there is no token that may write, or the Hub cannot be reached.
            ValueError: no licence follows from teacher and data, and none was given.
        """
        if self._may_publish or not self.is_world_process_zero():
            return
        self.card_callback.find_sources(self.model.config)
        self.card.settle_license(self.student_license)
        if self.card.license is None:
            raise ValueError(f"{self.card.license_reason}: choose the student's licence with --license.")
        if self.student_license == License("other"):
            raise ValueError(
                "the licence `other` needs a name and a link: leave --push_to_hub out, and publish the finished "
                "run by training/publish.py with --license_name and --license_link."
            )
        self.hub_model_id = check_access(self.hub_model_id, token or self.args.hub_token)
        self._may_publish = True

    def train(self, *args, **kwargs) -> TrainOutput:
        """`Trainer.train`; with `push_to_hub`, not before it is known that the student can be published."""
        if self.args.push_to_hub:
            self.check_publishing()
        if self.is_world_process_zero():  # of a run that was killed while it pushed
            shutil.rmtree(Path(self.args.output_dir, SNAPSHOT), ignore_errors=True)
        return super().train(*args, **kwargs)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        gated: Literal["auto", "manual"] | None = None,
        create_pr: bool = False,
        tag: str | None = None,
        tags: list[str] | None = None,
        **kwargs,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Export the student and push its folder in one commit, and the last checkpoint if `hub_strategy` says so.

        Args:
            commit_message: the commit's title.
            blocking: wait for the end of the upload; otherwise a `Future` is returned.
            token, revision, private: default: those of the arguments.
            gated, create_pr, tag: see `PushOptions`.
            tags: more tags for the card's metadata.
            kwargs: ignored; other trainers draft their card from them.

        Raises:
            PushError: it did not come about; the folder is whole.
            ValueError: no licence follows from teacher and data, and none was given.
        """
        if self.hub_model_id is None:
            self.init_hf_repo()
        self.check_publishing(token)
        if not self.is_world_process_zero():
            return None
        self.card.tags += [tag for tag in tags or [] if tag not in self.card.tags]
        folder = self.export_student()
        self._finish_current_push()
        options = PushOptions(
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            gated=gated,
            create_pr=create_pr,
            tag=tag,
            message=commit_message,
            token=token or self.args.hub_token,
        )
        more_files = {}
        if self.args.hub_strategy == HubStrategy.CHECKPOINT:
            # The push of the last one may have been left out, as the one before it was under way.
            checkpoint = newest_checkpoint(self.args.output_dir)
            files = files_of(checkpoint) if checkpoint is not None else {}
            more_files = {f"{LAST_CHECKPOINT}/{name}": path for name, path in files.items()}
        arguments = (folder, self.hub_model_id, options, self.student_license, more_files)
        if blocking:
            return push_student(*arguments)
        return HfApi().run_as_future(push_student, *arguments)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the student of a checkpoint, and the checkpoint itself if the strategy says so, in the background."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        with warn_only("the folder to push"):
            # The training goes on, and deletes checkpoints: what is pushed is kept apart until it has arrived.
            checkpoint = Path(checkpoint_folder)
            snapshot = Path(self.args.output_dir, SNAPSHOT, checkpoint.name)
            model = type(self.accelerator.unwrap_model(self.model)).from_pretrained(checkpoint)
            folder = self.export_student(snapshot / STUDENT_FOLDER, model)
            more_files = {}
            if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                every = self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS
                more_files = _link(checkpoint, snapshot, checkpoint.name if every else LAST_CHECKPOINT)
            options = PushOptions(
                private=self.args.hub_private_repo,
                revision=self.args.hub_revision,
                message=f"Training in progress, step {self.state.global_step}",
                token=self.args.hub_token,
            )
            job = HfApi().run_as_future(
                _push_and_forget, snapshot, folder, self.hub_model_id, options, self.student_license, more_files
            )
            if busy:
                self.push_in_progress.jobs.append(job)
            else:
                self.push_in_progress = PushInProgress([job])


def _link(checkpoint: Path, snapshot: Path, name: str) -> dict[str, Path]:
    """The files of a checkpoint, kept in `snapshot` by links: path in the repository -> file."""
    found = {}
    for file, path in files_of(checkpoint).items():
        kept = snapshot / "checkpoint" / file
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, kept)
        except OSError:  # a file system without links
            shutil.copyfile(path, kept)
        found[f"{name}/{file}"] = kept
    return found


def _push_and_forget(
    snapshot: Path, folder: Path, repo_id: str, options: PushOptions, license: License | None, files: dict[str, Path]
) -> None:
    try:
        push_student(folder, repo_id, options, license, files)
    except PushError as error:
        logger.warning("%s: %s; the training goes on.", options.message, str(error).split(". ")[0])
    except Exception as error:
        logger.warning("%s was not pushed: %s; the training goes on.", options.message, error)
    finally:
        shutil.rmtree(snapshot, ignore_errors=True)
