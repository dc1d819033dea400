"""The report as a callback: one place for the run's trackers, pictures of every evaluation, the page at the end."""

from __future__ import annotations

from transformers import TrainerCallback

from ..training.base import BaseTrainer
from ..training.callbacks import warn_only
from .drawing import draw_evaluation
from .page import write_report
from .trackers import log_pictures, settle_trackers


class ReportCallback(TrainerCallback):
    """Keeps a run's report and hands its pictures to its trackers; whatever fails is a warning.

    To be added to the trainer's callbacks.

    Args:
        trainer: whose run it is.
    """

    def __init__(self, trainer: BaseTrainer):
        self.trainer = trainer
        settle_trackers(trainer)

    def on_evaluate(self, args, state, control, features=None, **kwargs):
        """Draw what the student predicts and finds alike."""
        if features is None or not state.is_world_process_zero:
            return
        with warn_only("the pictures of the evaluation"):
            pictures = draw_evaluation(self.trainer, features)
            for callback in self.trainer.callback_handler.callbacks:
                with warn_only(f"the pictures for {type(callback).__name__}"):
                    log_pictures(callback, pictures, state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        """Write the page; a command may write it again when it knows more."""
        if state.is_world_process_zero:
            with warn_only("the report"):
                write_report(args.output_dir)
