"""Two gloo processes with half of a batch each are one process with the whole batch, in values and gradients."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hgkd_hf.objectives.assignment import assignment_loss, swav_targets
from hgkd_hf.objectives.contrastive import ContrastiveLoss
from hgkd_hf.objectives.distributed import gather_batch
from hgkd_hf.objectives.multi_scale_contrastive import multi_scale_contrastive_loss

PROCESSES, BATCH = 2, 6
TERMS = ["gather", "swav", "multi_scale", "multi_scale_labels", "contrastive"]


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compute(rows, gather):
    """Each term on `rows` of one batch: its value, the gradient of the rows, the gradient of shared parameters."""
    results = {}

    def record(name, loss, inputs, shared=()):
        gradients = torch.autograd.grad(loss, [inputs, *shared])
        results[name] = {"value": loss.detach(), "rows": gradients[0], "shared": list(gradients[1:])}

    inputs = random(BATCH, 3, seed=0)[rows].requires_grad_()
    everyone, _ = gather_batch(inputs)
    # Every process weighs the gathered rows by its own: what comes back must be the sum over processes.
    record("gather", (inputs.detach().mean(0) * everyone.pow(3).mean(0)).sum(), inputs)

    student, targets = random(BATCH, 5, seed=1)[rows].requires_grad_(), swav_targets(random(BATCH, 5, seed=2)[rows])
    record("swav", assignment_loss([student], [targets], num_global=1)["loss"], student)
    results["swav"]["targets"] = targets

    labels = torch.tensor([0, 1, 2, 1, 0, 1])[rows]
    for name, exclude in [("multi_scale", False), ("multi_scale_labels", True)]:
        student, teacher = random(BATCH, 4, 4, 4, seed=3)[rows].requires_grad_(), random(BATCH, 4, 4, 4, seed=4)[rows]
        terms = multi_scale_contrastive_loss(
            student,
            teacher,
            selection="consistent",
            classifier=lambda x: x[..., :3],
            labels=labels,
            exclude_same_label=exclude,
            gather=gather,
        )
        record(name, terms["loss"], student)

    torch.manual_seed(0)
    contrast = ContrastiveLoss(4, 3, projection_dim=5, gather=gather).double()
    student = random(BATCH, 4, seed=5)[rows].requires_grad_()
    loss = contrast(student, random(BATCH, 3, seed=6)[rows])["loss"]
    record("contrastive", loss, student, list(contrast.parameters()))
    return results


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )
    each = BATCH // PROCESSES
    torch.save(compute(slice(rank * each, (rank + 1) * each), gather=True), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(worker, args=(str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def whole():
    return compute(slice(None), gather=False)


@pytest.mark.parametrize("name", TERMS)
def test_two_processes_equal_one(name, parts, whole):
    """As DDP does it: losses and parameter gradients are averaged over processes."""
    mine = [part[name] for part in parts]
    torch.testing.assert_close(sum(m["value"] for m in mine) / PROCESSES, whole[name]["value"])
    torch.testing.assert_close(torch.cat([m["rows"] for m in mine]) / PROCESSES, whole[name]["rows"])
    for index, gradient in enumerate(whole[name]["shared"]):
        torch.testing.assert_close(sum(m["shared"][index] for m in mine) / PROCESSES, gradient)
    assert whole[name]["rows"].abs().max() > 1e-4


def test_sinkhorn_targets_are_those_of_the_global_batch(parts, whole):
    torch.testing.assert_close(torch.cat([part["swav"]["targets"] for part in parts]), whole["swav"]["targets"])
    alone = swav_targets(random(BATCH, 5, seed=2)[: BATCH // PROCESSES])
    assert not torch.allclose(alone, parts[0]["swav"]["targets"], atol=1e-2)


def test_one_process_gathers_nothing():
    tensor = torch.ones(2, 3)
    gathered, first = gather_batch(tensor)
    assert gathered is tensor
    assert first == 0
