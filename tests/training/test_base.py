"""What every training does around the loop: signals, speeds, callbacks that publish, the loader's workers."""

import ast
import json
import multiprocessing
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_trainer import Pictures, arguments
from torch.utils.data import get_worker_info
from transformers import TrainerCallback

from hgkd_hf.training.base import BaseTrainer
from hgkd_hf.training.callbacks import Publisher, StopOnSignal
from hgkd_hf.training.trainer import DistillationTrainer


def entries(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Fails(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise KeyError("broken")


@pytest.mark.parametrize("callbacks", [[], [Fails()]], ids=["done", "failed"])
def test_the_signal_handler_does_not_outlive_the_training(hgkd, tmp_path, callbacks):
    before = signal.getsignal(signal.SIGTERM)
    trainer = DistillationTrainer(hgkd, arguments(tmp_path, max_steps=1), Pictures(), callbacks=callbacks)
    try:
        trainer.train()
    except KeyError:
        assert callbacks
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_ends_the_workers_of_the_loader_and_no_other_child(hgkd, tmp_path):
    own = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    own.start()
    args = arguments(tmp_path, max_steps=2, dataloader_num_workers=1)
    try:
        with pytest.raises(KeyError):
            DistillationTrainer(hgkd, args, Pictures(), callbacks=[Fails()]).train()
        assert multiprocessing.active_children() == [own]
        assert own.is_alive()
    finally:
        own.kill()
        own.join()


@pytest.mark.parametrize(("images", "world"), [(6, 1), (6, 2), (5, 2), (7, 4), (3, 3), (2, 5)])
def test_processes_evaluate_equally_many_images_and_all_of_them(images, world):
    """A sharded model waits for all processes in every forward: with one batch more it would for ever."""
    ranks = [SimpleNamespace(process_index=rank, world_size=world) for rank in range(world)]
    shares = [BaseTrainer.own_share(SimpleNamespace(args=args), range(images)) for args in ranks]
    assert len({len(share) for share in shares}) == 1
    assert {row for share in shares for row in share} == set(range(images))


def test_a_thread_can_train_though_it_cannot_listen(hgkd, tmp_path):
    trainer = DistillationTrainer(hgkd, arguments(tmp_path, max_steps=1), Pictures())
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join(60)
    assert trainer.state.global_step == 1


def test_a_signal_stops_after_the_step_with_a_checkpoint(hgkd, tmp_path):
    class Signal(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                signal.raise_signal(signal.SIGTERM)

    trainer = DistillationTrainer(hgkd, arguments(tmp_path, max_steps=6), Pictures(), callbacks=[Signal()])
    with pytest.raises(SystemExit) as caught:
        trainer.train()
    assert caught.value.code == 143
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_signal_of_before_is_none_of_this_training():
    stop = StopOnSignal()
    stop.received = stop.stopping = True
    with stop.listening():
        assert not stop.received
        assert not stop.stopping


def test_speed_after_a_resume_is_that_of_the_steps_done_since(hgkd, tmp_path):
    """Not of all steps, in the short time since: that was off by their ratio."""

    class Slow(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            time.sleep(0.2)

    def trainer(**settings):
        settings = {"save_strategy": "steps", "save_steps": 40, "logging_steps": 1, **settings}
        return DistillationTrainer(hgkd, arguments(tmp_path, **settings), Pictures())

    trainer(max_steps=40).train()
    resumed = trainer(max_steps=42)
    resumed.add_callback(Slow())
    resumed.train(resume_from_checkpoint=True)
    speeds = [entry["images_per_second"] for entry in entries(tmp_path) if entry["step"] > 40 and "loss" in entry]
    assert len(speeds) == 2
    assert max(speeds) < 4 / 0.2


def test_models_without_terms_have_a_speed_too(hgkd, tmp_path):
    class Plain(BaseTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            self._terms = {}
            return loss

    Plain(hgkd, arguments(tmp_path, max_steps=2, logging_steps=1), Pictures()).train()
    assert all(entry["images_per_second"] > 0 for entry in entries(tmp_path) if "loss" in entry)


class Published(Publisher):
    def push_to_hub(self, *args, **kwargs):
        return args, kwargs

    def create_model_card(self, *args, **kwargs):
        self.card = True


def test_publishing_is_a_callbacks(hgkd, tmp_path):
    trainer = BaseTrainer(hgkd, arguments(tmp_path, max_steps=1, push_to_hub=True, hub_model_id="a/b"), Pictures())
    for ask in (trainer.train, trainer.push_to_hub, trainer.create_model_card):
        with pytest.raises(ValueError, match="has no callback that publishes: add one, .* or leave push_to_hub out"):
            ask()
    publisher = Published()
    trainer.add_callback(publisher)
    trainer.train()
    assert trainer.push_to_hub("Done", tag="v1") == (("Done",), {"tag": "v1"})
    trainer.create_model_card()
    assert publisher.card


class InWorkers(Pictures):
    """Tells what a worker does on SIGTERM."""

    def __getitem__(self, index):
        if get_worker_info() is not None:
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, "it would die of the job's first SIGTERM"
        return super().__getitem__(index)


def test_workers_outlive_the_first_signal(hgkd, tmp_path):
    data = InWorkers(masks=True)
    args = arguments(tmp_path, max_steps=2, dataloader_num_workers=1)
    trainer = DistillationTrainer(hgkd, args, data, (InWorkers(masks=False), InWorkers(masks=False)))
    trainer.train()
    trainer.evaluate()


@pytest.mark.parametrize("files", ["training/*.py", "finetuning/trainer.py"])
def test_every_loader_of_a_run_has_such_workers(files):
    loaders = [
        (f"{path.name}:{node.lineno}", {keyword.arg for keyword in node.keywords})
        for path in (Path(__file__).parents[2] / "src" / "hgkd_hf").glob(files)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "DataLoader"
    ]
    assert loaders
    for place, keywords in loaders:
        assert "worker_init_fn" in keywords, place
