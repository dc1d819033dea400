"""Fills a student's card while the training runs."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback

from ..data import DistillationDataset
from ..evaluation import Features
from ..training.callbacks import warn_only
from .folder import describe_model
from .machine import commit_of_package, energy, hardware, versions
from .sources import find_source, pinned_revision
from .student_card import BEFORE, CARD_FILE, METRICS, STUDENT, StudentCard


class CardCallback(TrainerCallback):
    """Writes what a run tells of its student into a card, and the card to `card.json` in the run's folder.

    Its failures are warnings. Of a resumed run, the time and metrics of before the stop are kept.

    Args:
        card: to fill.
        train_dataset: of the training; a `source` (`ImageSource`) tells where its images are from.
        eval_dataset: what the model is evaluated on.
    """

    def __init__(self, card: StudentCard, train_dataset: Dataset, eval_dataset: Dataset | None = None):
        self.card, self.train_dataset, self.eval_dataset = card, train_dataset, eval_dataset
        self._sources_found = False
        self._start, self._seconds_before = time.perf_counter(), 0.0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """What does not change: model, sources, settings, machine."""
        if not state.is_world_process_zero:
            return
        with warn_only("the start of the model card"):
            path = Path(args.output_dir, CARD_FILE)
            if state.global_step and path.is_file():
                earlier = StudentCard.load(path)
                self._seconds_before = earlier.run.get("seconds", 0.0)
                self.card.results = earlier.results | self.card.results
            self.card.name = self.card.name or Path(args.hub_model_id or os.path.abspath(args.output_dir)).name
            self.describe(model)
            self.find_sources_once(model)
            self.card.add_settings(args)
            self.card.versions = versions()
            self.card.commit = self.card.commit or commit_of_package()
            self.card.run["hardware"] = hardware(args)
        self._start = time.perf_counter()

    def describe(self, model: PreTrainedModel) -> None:
        """What the model itself tells."""
        describe_model(self.card, model)

    def find_sources_once(self, model: PreTrainedModel) -> None:
        """`find_sources`, the first time that this is called."""
        if not self._sources_found:
            self._sources_found = True
            self.find_sources(model)

    def find_sources(self, model: PreTrainedModel) -> None:
        """Ask for commit and licence of what the model is made of: here, the data."""
        source = getattr(self.train_dataset, "source", None)
        if source is not None:
            pinned = pinned_revision(source.dataset)
            self.card.dataset = find_source(source.name, "dataset", pinned or source.revision)
            self.card.data = {"split": source.split, "images": source.num_rows, "fingerprint": source.fingerprint}
        if getattr(self.eval_dataset, "source", None) is not None:
            self.card.data["evaluation_split"] = self.eval_dataset.source.split

    def protocol(self, args: Any, features: tuple[Features, Features] | None) -> dict[str, str]:
        """How each metric is measured, a clause each; `features` are those of kNN's bank and queries."""
        return {}

    def on_log(self, args, state, control, **kwargs):
        """How far it is."""
        if state.is_world_process_zero and state.global_step:
            seconds = self._seconds_before + time.perf_counter() - self._start
            images = state.global_step * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            if "images" in self.card.data and isinstance(self.train_dataset, DistillationDataset):
                self.card.data["images"] = self.train_dataset.num_usable
            self.card.run |= {
                "steps": state.global_step,
                "images_seen": images,
                "seconds": round(seconds, 3),
                "images_per_second": round(images / seconds, 1),
            }

    def on_evaluate(self, args, state, control, metrics=None, features=None, **kwargs):
        """Metrics: those of `before_...` are the network's as it started, others the model's."""
        if not state.is_world_process_zero:
            return
        with warn_only("the metrics of the model card"):
            for key, value in (metrics or {}).items():
                prefix, _, metric = key.partition("_")
                if metric in METRICS and math.isfinite(value):
                    self.card.results.setdefault(BEFORE if prefix == "before" else STUDENT, {})[metric] = value
            self.card.protocol |= self.protocol(args, features)
            self.save(args)

    def on_save(self, args, state, control, **kwargs):
        """Keep what is known so far."""
        if state.is_world_process_zero:
            self.save(args)

    def on_train_end(self, args, state, control, **kwargs):
        """Energy, if codecarbon measured it (`--report_to codecarbon`)."""
        if state.is_world_process_zero:
            self.on_log(args, state, control)
            with warn_only("the energy on the model card"):
                self.card.run |= energy(Path(args.output_dir, "emissions.csv"))
            self.save(args)

    def save(self, args: Any) -> None:
        """Write `card.json`."""
        with warn_only("card.json"):
            self.card.save(Path(args.output_dir, CARD_FILE))
