import re

import pytest
import torch
from torch.utils.data import Dataset

from hgkd_hf.training.trainer import DistillationArguments, DistillationTrainer


class Pictures(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        mask = torch.randperm(16, generator=generator).view(4, 4) > 5
        return {"pixel_values": torch.randn(3, 64, 64, generator=generator), "bool_masked_pos": mask}


@pytest.fixture
def trainer(hgkd, tmp_path):
    def build(**settings) -> DistillationTrainer:
        defaults = {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "no", "report_to": "none"}
        return DistillationTrainer(
            hgkd, DistillationArguments(output_dir=str(tmp_path), **{**defaults, **settings}), Pictures()
        )

    return build


def bars(text: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]", text) if "images/s" in line]


def test_bar_tells_images_per_second_and_the_time_left(trainer, capsys):
    trainer(disable_tqdm=False, logging_steps=1).train()
    last = bars(capsys.readouterr().err)[-1]
    assert re.search(r"4/4 \[\d+:\d+<00:00, .*, [\d.e+]+ images/s, loss [\d.]+\]", last), last


def test_bar_of_a_run_that_goes_on_starts_where_it_was(trainer, capsys):
    trainer(disable_tqdm=False, save_strategy="steps", save_steps=3, max_steps=3).train()
    capsys.readouterr()
    trainer(disable_tqdm=False).train(resume_from_checkpoint=True)
    shown = capsys.readouterr().err
    assert "3/4" in shown
    assert "0/4" not in shown
    assert "images/s" in bars(shown)[-1]


def test_no_bar_where_none_is_wanted(trainer, capsys):
    trainer(disable_tqdm=True).train()
    assert not bars(capsys.readouterr().err)


def test_no_bar_of_other_processes(trainer, capsys):
    built = trainer(disable_tqdm=False)
    built.state.is_world_process_zero = False
    for event in ("on_train_begin", "on_step_end", "on_train_end"):
        for callback in built.callback_handler.callbacks:
            if type(callback).__name__ == "ImagesPerSecond":
                getattr(callback, event)(built.args, built.state, built.control)
    assert not capsys.readouterr().err
