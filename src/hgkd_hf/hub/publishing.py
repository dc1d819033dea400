"""How a run publishes: at its end, or at every checkpoint in the background, always one commit with the card."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import PreTrainedModel
from transformers.trainer_utils import HubStrategy
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, logging
from transformers.utils.hub import PushInProgress

from ..checkpoints.folders import newest_checkpoint
from ..checkpoints.run_files import METRICS_FILE, RECIPE_FILE
from ..training.base import BaseTrainer
from ..training.callbacks import Publisher, warn_only
from .callback import CardCallback
from .checkpoint import public_checkpoint
from .push import Head, PushError, PushOptions, check_access, files_of
from .sources import License
from .student_card import CARD_FILE, StudentCard
from .student_push import push_student, refuse_another_model

logger = logging.get_logger(__name__)

SNAPSHOT, LAST_CHECKPOINT = ".push", "last-checkpoint"
MODEL_FILES = (CONFIG_NAME, SAFE_WEIGHTS_NAME, CARD_FILE, RECIPE_FILE, METRICS_FILE)
_ANOTHER_MODEL = (
    "choose another --hub_model_id, or leave --push_to_hub out and publish the finished run with "
    "`hgkd publish --overwrite`"
)


class ModelPublisher(CardCallback, Publisher):
    """Publishes what a trainer trains, with a card that tells of the run.

    To be added to the trainer's callbacks. `push_to_hub`, `hub_model_id`, `hub_strategy` and so on mean what they mean
    in `TrainingArguments`; `license` is the model's. A push that fails while the training runs is a warning.

    Args:
        trainer: whose model it is.

    Attributes:
        card: what is known of the model.
        push_in_progress: the pushes of checkpoints, None before the first.
    """

    def __init__(self, trainer: BaseTrainer):
        super().__init__(StudentCard(name=""), trainer.train_dataset, trainer.eval_dataset)
        self.trainer, self.args = trainer, trainer.args
        self.push_in_progress: PushInProgress | None = None
        self.hub_model_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        self._may_publish = False

    @abstractmethod
    def export(self, folder: Path | None = None, model: PreTrainedModel | None = None) -> Path:
        """Write the folder that is published.

        Args:
            folder: default: the usual one in the run's folder.
            model: default: the one that is trained.
        """

    @abstractmethod
    def model_at(self, checkpoint: Path) -> PreTrainedModel:
        """The model of a checkpoint that was just written."""

    @property
    def license(self) -> License | None:
        """The licence that was asked for."""
        return License(self.args.license) if self.args.license else None

    def create_model_card(self, *args, **kwargs) -> None:
        """The card is part of the published folder: this writes that."""
        if self._is_main:
            self.export()

    def check_publishing(self, token: str | None = None) -> None:
        """Find out before the training whether the model can be published, once the card knows its sources.

        Raises:
            PushError: there is no token that may write, or the Hub cannot be reached.
            ValueError: no licence follows from teacher and data, and none was given.
        """
        if self._may_publish or not self._is_main:
            return
        self.find_sources_once(self.model)
        self.card.settle_license(self.license)
        if self.card.license is None:
            raise ValueError(f"{self.card.license_reason}: choose the model's licence with --license.")
        if self.license == License("other"):
            raise ValueError(
                "the licence `other` needs a name and a link: leave --push_to_hub out, and publish the finished "
                "run with `hgkd publish --license other --license_name ... --license_link ...`."
            )
        token = token or self.args.hub_token
        self.hub_model_id = check_access(self.hub_model_id, token)
        self.describe(self.model)
        with suppress(RepositoryNotFoundError):
            head = Head.of(HfApi(token=token), self.hub_model_id, PushOptions(revision=self.args.hub_revision))
            refuse_another_model(head, self.card, MODEL_FILES, _ANOTHER_MODEL)
        self._may_publish = True

    def on_train_begin(self, args, state, control, **kwargs):
        """Begin the card; with `push_to_hub`, find out whether the model can be published."""
        super().on_train_begin(args, state, control, **kwargs)
        if args.push_to_hub:
            self.check_publishing()
        if state.is_world_process_zero:  # of a run that was killed while it pushed
            shutil.rmtree(Path(args.output_dir, SNAPSHOT), ignore_errors=True)

    def on_save(self, args, state, control, **kwargs):
        """Keep the card, and push the checkpoint if the strategy says so."""
        super().on_save(args, state, control, **kwargs)
        if args.push_to_hub and state.is_world_process_zero and args.hub_strategy != HubStrategy.END:
            self._push_checkpoint(Path(args.output_dir, f"checkpoint-{state.global_step}"), state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        """Finish the card, and the push that is under way."""
        super().on_train_end(args, state, control, **kwargs)
        self.wait_for_push()

    def wait_for_push(self) -> None:
        """Return when the pushes of checkpoints are done."""
        if self.push_in_progress is not None:
            self.push_in_progress.wait_until_done()

    @property
    def model(self) -> PreTrainedModel:
        """What is trained."""
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    @property
    def _is_main(self) -> bool:
        return self.trainer.is_world_process_zero()

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
        """Export the model and push its folder in one commit, and the last checkpoint if `hub_strategy` says so.

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
        self.check_publishing(token)
        if not self._is_main:
            return None
        self.card.tags += [tag for tag in tags or [] if tag not in self.card.tags]
        folder = self.export()
        self.wait_for_push()
        options = PushOptions(
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            gated=gated,
            create_pr=create_pr,
            tag=tag,
            message=commit_message,
            token=token or self.args.hub_token,
        )
        snapshot, more_files = Path(self.args.output_dir, SNAPSHOT, "last"), {}
        checkpoint = newest_checkpoint(self.args.output_dir)
        if self.args.hub_strategy == HubStrategy.CHECKPOINT and checkpoint is not None:
            # The push of the last one may have been left out, as the one before it was under way.
            more_files = _keep(checkpoint, snapshot, LAST_CHECKPOINT)

        def push() -> CommitInfo:
            try:
                return push_student(folder, self.hub_model_id, options, self.license, more_files)
            finally:
                shutil.rmtree(snapshot, ignore_errors=True)

        return push() if blocking else HfApi().run_as_future(push)

    def _push_checkpoint(self, checkpoint: Path, step: int) -> None:
        """Push the model of a checkpoint, and the checkpoint itself if the strategy says so, in the background."""
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        with warn_only("the folder to push"):
            # The training continues, and deletes checkpoints: what is pushed is kept apart until it has arrived.
            snapshot = Path(self.args.output_dir, SNAPSHOT, checkpoint.name)
            folder = self.export(snapshot / "model", self.model_at(checkpoint))
            more_files = {}
            if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                every = self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS
                more_files = _keep(checkpoint, snapshot, checkpoint.name if every else LAST_CHECKPOINT)
            options = PushOptions(
                private=self.args.hub_private_repo,
                revision=self.args.hub_revision,
                message=f"Training in progress, step {step}",
                token=self.args.hub_token,
            )
            job = HfApi().run_as_future(
                _push_and_forget, snapshot, folder, self.hub_model_id, options, self.license, more_files
            )
            if busy:
                self.push_in_progress.jobs.append(job)
            else:
                self.push_in_progress = PushInProgress([job])


def _keep(checkpoint: Path, snapshot: Path, name: str) -> dict[str, Path]:
    """What is published of a checkpoint, kept in `snapshot`: path in the repository -> file."""
    shutil.rmtree(snapshot / "checkpoint", ignore_errors=True)
    kept = public_checkpoint(checkpoint, snapshot / "checkpoint")
    return {f"{name}/{file}": path for file, path in files_of(kept).items()}


def _push_and_forget(
    snapshot: Path, folder: Path, repo_id: str, options: PushOptions, license: License | None, files: dict[str, Path]
) -> None:
    try:
        push_student(folder, repo_id, options, license, files)
    except PushError as error:
        logger.warning("%s: %s; the training continues.", options.message, str(error).split(". ")[0])
    except Exception as error:
        logger.warning("%s was not pushed: %s; the training continues.", options.message, error)
    finally:
        shutil.rmtree(snapshot, ignore_errors=True)
