"""`transformers.Trainer` whose runs survive: whole checkpoints without pickle, and resuming bit for bit."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput

from .folders import (
    ARGUMENTS_FILE,
    check_shared,
    checkpoint_step,
    explain_full_disk,
    list_checkpoints,
    newest_checkpoint,
    prune_checkpoints,
    remove_partial,
)
from .lock import run_lock
from .schedule import group_settings, restore_schedule, restore_settings
from .state_files import load_state, save_state
from .whole_folders import PARTIAL, complete_folder, written_aside

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.safetensors"
# A whole state dict on the CPU, from parameters that FSDP2 shares out among the processes.
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class ResumableTrainer(Trainer):
    """A trainer that writes `checkpoint-<step>` as `folders.py` says, and resumes from one as if never stopped.

    What it relies on of `Trainer`'s private parts is listed in `tests/training/test_private_trainer.py`, which fails
    when a new transformers changes one.

    Generator states are not saved: callers seed each step (`training.callbacks.SeedEachStep`) and key samples by
    their index.

    Attributes:
        resumed_step: the step that the running `train` began with.
    """

    resumed_step = 0
    _resumed_from: Path | None = None  # the checkpoint, until the first step

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """`Trainer.train`; with True, the newest whole checkpoint is taken and damaged ones are named.

        The mean loss that is reported at the end is that of all steps, whatever the process did them.

        Raises:
            ValueError: True, and there is no whole checkpoint; the checkpoint is of a later step than `max_steps`, or
                lacks what resuming needs; another process trains in the folder; or not all processes see it.
            RunStopped: the disk is full.
        """
        run = self.args.output_dir
        check_shared(run, self.accelerator)
        with run_lock(run) if self.args.should_save else nullcontext(), explain_full_disk(run):
            list_checkpoints(run)  # raises where one could not be written
            if resume_from_checkpoint is True:
                resume_from_checkpoint = newest_checkpoint(run)
                if resume_from_checkpoint is None:
                    raise ValueError(f"there is no complete checkpoint in {run} (output_dir) to resume from.")
            self._resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
            self.resumed_step = self._mean_since = 0
            if self._resumed_from is not None:
                self.resumed_step = self._check_checkpoint(self._resumed_from)
            trained = super().train(resume_from_checkpoint and str(resume_from_checkpoint), **kwargs)
        loss = self._mean_loss()
        return trained._replace(training_loss=loss, metrics=trained.metrics | {"train_loss": loss})

    def _check_checkpoint(self, checkpoint: Path) -> int:
        step = checkpoint_step(checkpoint)
        if 0 < self.args.max_steps < step:
            raise ValueError(
                f"{checkpoint} is of a later step than --max_steps {self.args.max_steps}: raise it, or choose another "
                "--output_dir."
            )
        if not (checkpoint / STATE_FILE).is_file():
            raise ValueError(
                f"{checkpoint} has no {STATE_FILE}, as of a run with --save_only_model: it cannot be resumed, but its "
                "model can be loaded."
            )
        return step

    def _save_checkpoint(self, model, trial=None) -> None:
        """Write `checkpoint-<step>` aside and rename it once it is whole; then delete what is too many."""
        run, step, best = Path(self.args.output_dir), self.state.global_step, self.state.best_global_step
        partial, main = run / f"checkpoint-{step}{PARTIAL}", self.args.should_save
        self.store_flos()
        if best and (best == step or (run / f"checkpoint-{best}").is_dir()):
            self.state.best_model_checkpoint = str(run / f"checkpoint-{best}")
        with explain_full_disk(run):
            if main:
                remove_partial(run)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.save_model(str(partial), _internal_call=True)
            if not self.args.save_only_model:
                self._save_training_state(partial)
            if main:
                for part in (*self.callback_handler.callbacks, self.control):
                    if isinstance(part, ExportableState):
                        self.state.stateful_callbacks[type(part).__name__] = part.state()
                self.state.save_to_json(str(partial / TRAINER_STATE_NAME))
            self.accelerator.wait_for_everyone()
            if main:
                complete_folder(partial)
                prune_checkpoints(run, self.args.save_total_limit, best)
        self.accelerator.wait_for_everyone()

    def _save_training_state(self, folder: Path) -> None:
        """What a resumed run needs beside the model: optimizer, schedule, scaler, and each process's open log."""
        if self.is_fsdp_enabled:
            optimizer = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=_WHOLE)
        else:
            optimizer = self.optimizer.state_dict()
        scaler = self.accelerator.scaler
        if self.args.should_save:
            state = {"optimizer": optimizer, "scheduler": self.lr_scheduler.state_dict()}
            state["scaler"] = None if scaler is None else scaler.state_dict()
            save_state(state, folder / STATE_FILE)
        save_state(self.log_state(), folder / f"log_state_{self.args.process_index}.safetensors")

    def log_state(self) -> dict[str, Any]:
        """What this process has summed up since the last log, so that a resumed run logs the same means."""
        return {"loss": self._tr_loss, "since": self._globalstep_last_logged, "total": self._total_loss_scalar}

    def load_log_state(self, state: dict[str, Any]) -> None:
        """Continue with what `log_state` gave."""
        self._tr_loss = state["loss"].to(self.args.device)
        self._globalstep_last_logged = state["since"]
        if "total" in state:
            self._total_loss_scalar = state["total"]
        else:  # in checkpoints of earlier versions
            self._mean_since = self.state.global_step

    def _mean_loss(self) -> float:
        return self._total_loss_scalar / max(self.state.global_step - self._mean_since, 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """`Trainer.log`; the mean loss at the end of the training is that of all its steps."""
        if "train_loss" in logs:
            logs["train_loss"] = self._mean_loss()
        super().log(logs, start_time)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Read what `_save_training_state` wrote, but the log's state; settings are those of this run's arguments.

        They differ from the checkpoint's only where somebody allowed it (`identity.check_same_run`). Moments of
        another optimizer are not taken.
        """
        if checkpoint is None:
            return
        state = load_state(Path(checkpoint, STATE_FILE))
        before = json.loads(Path(checkpoint, ARGUMENTS_FILE).read_text(encoding="utf-8"))
        changed = {name for name, value in self.args.to_dict().items() if before.get(name) != value}
        if not changed & {"optim", "optim_args"}:
            settings = group_settings(self.optimizer, with_rate=bool(changed & {"learning_rate", "lr_scheduler_type"}))
            if self.is_fsdp_enabled:
                set_optimizer_state_dict(self.model, self.optimizer.optimizer, state["optimizer"], options=_WHOLE)
            else:
                self.optimizer.load_state_dict(state["optimizer"])
            restore_settings(self.optimizer, settings)
        else:
            logger.warning("The optimizer has changed (optim, optim_args): its moments start from zero.")
        if "lr_scheduler_type" in changed:
            state["scheduler"] = {"last_epoch": self.resumed_step, "_step_count": self.resumed_step + 1}
        restore_schedule(self.lr_scheduler, state["scheduler"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _run_epoch(self, **kwargs: Any) -> None:
        """One pass; the first of a resumed run continues the means that were being logged.

        `Trainer` looks at `max_steps` after a step alone: of a run that has done them all it would do one more.
        """
        if self._resumed_from is not None:
            path = self._resumed_from / f"log_state_{self.args.process_index}.safetensors"
            if path.is_file():  # not with more processes than before
                self.load_log_state(load_state(path))
            self._resumed_from = None
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read the model's weights, all of them.

        By `from_pretrained`, since a saved model's keys are those of the Hub, not always those of the module.

        Raises:
            ValueError: they are not those of this model.
        """
        model = model or self.model
        saved = type(self.accelerator.unwrap_model(self.model)).from_pretrained(
            resume_from_checkpoint, use_safetensors=True, dtype=torch.float32
        )
        try:
            if self.is_fsdp_enabled:
                set_model_state_dict(model, saved.state_dict(), options=_WHOLE)
            else:
                model.load_state_dict(saved.state_dict())
        except RuntimeError as error:
            reasons = " ".join(str(error).split())
            raise ValueError(
                f"{resume_from_checkpoint} does not fit the network of these settings ({reasons[:300]}): changes of "
                "the network cannot be allowed, set them back."
            ) from error

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Done with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """There is none: see `SeedEachStep`."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Nothing: publishing is left to callbacks."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write model, image processor and arguments; all processes must call it.

        It does not push, unlike `Trainer`'s: publishing is left to callbacks.
        """
        state_dict = get_model_state_dict(self.model, options=_WHOLE) if self.is_fsdp_enabled else None
        self._save(output_dir, state_dict)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Model and image processor, and the arguments as JSON (`Trainer` would pickle them)."""
        if not self.args.should_save:
            return
        with written_aside(Path(output_dir or self.args.output_dir)) as folder:
            self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict=state_dict)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            (folder / ARGUMENTS_FILE).write_text(self.args.to_json_string())
