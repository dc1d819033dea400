from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import AutoModel

from hgkd_hf.checkpoints.folders import RunStopped
from hgkd_hf.cli.errors import run_script, sentence
from hgkd_hf.data.reading import StreamError


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, RunStopped, StreamError])
def test_expected_error_is_a_sentence(kind):
    def main():
        raise kind("the mask\nis torn.")

    with pytest.raises(SystemExit) as caught:
        run_script(main)
    assert caught.value.code == "error: the mask is torn."


def test_model_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(OSError) as caught:
        AutoModel.from_pretrained(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in sentence(caught.value)
    assert sentence(OSError(5, "Input/output error")) is None


def test_name_that_is_too_long_is_a_sentence(tmp_path):
    with pytest.raises(OSError) as caught:
        (tmp_path / ("a" * 300)).mkdir()
    assert "is too long for the name of a file or folder" in sentence(caught.value)
    assert len(sentence(caught.value)) < 200


def test_our_own_mistakes_keep_their_traceback():
    def main():
        raise AttributeError("oops")

    with pytest.raises(AttributeError):
        run_script(main)


class Broken:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise StreamError("the stream of 'a' failed: check it.")


def test_error_of_a_worker():
    with pytest.raises(StreamError) as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert "Traceback" in str(caught.value)
    assert sentence(caught.value) == "the stream of 'a' failed: check it."


@pytest.mark.parametrize("shape", [(10**13,), (10**12, 3, 3)])
def test_no_memory_is_a_sentence(shape):
    with pytest.raises(SystemExit, match="error: there is not enough memory .*lower --per_device_train_batch_size"):
        run_script(lambda: torch.empty(shape))


def threads_of_gloo() -> set[Path]:
    return {file for file in Path("/proc/self/task").glob("*/comm") if "gloo" in file.read_text()}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of threads")
def test_a_command_that_is_done_leaves_its_processes(tmp_path):
    """No thread of gloo outlives it, though a cycle holds what holds the group, as a trainer does a model under DDP.

    One that gives a tensor back while the interpreter ends aborts the process.
    """
    before, during = threads_of_gloo(), set()

    def main():
        dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
        model = DistributedDataParallel(torch.nn.Linear(2, 2))
        model.trainer = SimpleNamespace(model=model)
        during.update(threads_of_gloo())

    run_script(main)
    assert not dist.is_initialized()
    assert during - before
    assert not threads_of_gloo() - before
