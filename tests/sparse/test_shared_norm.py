"""BatchNorm shared by gloo processes with unequal parts of a batch is `nn.BatchNorm` on the whole batch."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from hgkd_hf.sparse.norm import SynchronisedBatchNorm1d, SynchronisedBatchNorm2d

PARTS = ([0, 1], [2, 3, 4, 5, 6])  # images of each process
CASES = {
    "maps": {"shape": (7, 3, 4, 5)},
    "channels_last": {"shape": (7, 3, 4, 5), "channels_last": True},
    "rows": {"shape": (7, 6)},
    "far_from_zero": {"shape": (7, 3, 4, 5), "offset": 1e3, "dtype": torch.float32, "tolerance": 1e-3},
    "float32": {"shape": (7, 3, 4, 5), "dtype": torch.float32, "tolerance": 1e-5},
    "bfloat16": {"shape": (7, 3, 4, 5), "dtype": torch.bfloat16, "tolerance": 2e-2},
    "without_parameters": {"shape": (7, 3, 4, 5), "affine": False},
    "cumulative": {"shape": (7, 3, 4, 5), "momentum": None},
}


def compute(norms, case, rows):
    """Output, gradients and running statistics of `rows` of the case's batch, after two forwards."""
    generator = torch.Generator().manual_seed(0)
    dtype = case.get("dtype", torch.float64)
    x, target = (torch.randn(case["shape"], generator=generator, dtype=torch.float64) for _ in range(2))
    x = (x * 2 + 1 + case.get("offset", 0.0)).to(dtype)[rows]
    if case.get("channels_last"):
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    norm = norms[x.dim()](x.shape[1], affine=case.get("affine", True), momentum=case.get("momentum", 0.1))
    norm = norm.to(torch.float32 if dtype == torch.bfloat16 else dtype)
    parameters = list(norm.parameters())
    for index, parameter in enumerate(parameters):
        nn.init.normal_(parameter, 1 - index, 0.3, generator=torch.Generator().manual_seed(index))
    norm(x.detach() * 3)
    y = norm(x)
    gradients = torch.autograd.grad((y.double() * target[rows] + y.double().pow(3) / 3).sum(), [x, *parameters])
    running = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    return {"y": y.detach(), "x": gradients[0], "parameters": list(gradients[1:]), "running": running}


def worker(rank, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    norms = {2: SynchronisedBatchNorm1d, 4: SynchronisedBatchNorm2d}
    results = {name: compute(norms, case, PARTS[rank]) for name, case in CASES.items()}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_equals_the_whole_batch(processes, name):
    case = CASES[name]
    tolerance = {"atol": case.get("tolerance", 1e-10), "rtol": case.get("tolerance", 1e-10)}
    whole = compute({2: nn.BatchNorm1d, 4: nn.BatchNorm2d}, case, list(range(7)))
    one, two = (process[name] for process in processes)
    for key in ("y", "x"):
        assert one[key].dtype == whole[key].dtype
        torch.testing.assert_close(torch.cat([one[key], two[key]]), whole[key], **tolerance)
    for own, other, of_all in zip(one["parameters"], two["parameters"], whole["parameters"], strict=True):
        torch.testing.assert_close(own + other, of_all, atol=tolerance["atol"] * 50, rtol=tolerance["rtol"])
    for process in (one, two):
        for value, expected in zip(process["running"], whole["running"], strict=True):
            torch.testing.assert_close(value, expected, **tolerance)
