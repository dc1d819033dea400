"""The progress bar of a training."""

from __future__ import annotations

from tqdm.auto import tqdm
from transformers import ProgressCallback


class ImagesPerSecond(ProgressCallback):
    """`Trainer`'s bar, which tells steps and the time left, with the loss and images per second, and nothing else.

    It is the first process's. That of a resumed run starts where the run was, so that speed and time left are those of
    the steps that are done now.
    """

    _loss = ""

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar."""
        self.current_step = state.global_step
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, initial=state.global_step, dynamic_ncols=True)

    def on_step_end(self, args, state, control, **kwargs):
        """Move it on."""
        bar = self.training_bar
        if bar is not None and not bar.disable:
            seen = bar.format_dict
            # tqdm's mean over the last steps; at the first it has none.
            rate = seen["rate"] or (state.global_step - bar.initial) / max(seen["elapsed"], 1e-9)
            bar.set_postfix_str(f"{rate * args.images_per_step:.3g} images/s{self._loss}", refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Remember the loss for the bar (`Trainer`'s prints all logs above it)."""
        if logs and "loss" in logs:
            self._loss = f", loss {logs['loss']:.4g}"
