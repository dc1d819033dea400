"""Whitened targets: by hand, their covariance, when statistics are fixed, their checkpoint, and many processes."""

import math
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hgkd_hf.objectives.feature_regression import TargetNorm
from hgkd_hf.objectives.whitening import CALIBRATION_BATCHES, SHRINKAGE, Whitening, whitening_matrix


def correlated(count, seed=0):
    """Rows of six channels that share most of their variance, far from 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(9)) * torch.tensor(
        [[9.0], [1], [1], [1], [1], [1]]
    )
    return torch.randn(count, 6, generator=generator) @ mixing + 4


def test_by_hand():
    """Two channels of deviations 2 and 3, correlated by 0.5: along (1, 1) and (1, -1) variances are 1.5 and 0.5."""
    matrix = whitening_matrix(torch.tensor([[4.0, 3.0], [3.0, 9.0]]))
    along, across = (1.5 + SHRINKAGE) ** -0.5, (0.5 + SHRINKAGE) ** -0.5
    size = math.sqrt((1.5 * along**2 + 0.5 * across**2) / 2)
    same, other = (along + across) / 2 / size, (along - across) / 2 / size
    wanted = torch.tensor([[same / 2, other / 2], [other / 3, same / 3]])
    torch.testing.assert_close(matrix, wanted, atol=1e-6, rtol=0)


def test_statistics_are_those_of_all_batches_so_far():
    """After two batches, as after one of both: numpy's correlation in the formula."""
    rows = correlated(400)
    norm = Whitening(6)
    norm(rows[:200])
    whitened = norm(rows[200:])
    values, directions = np.linalg.eigh(np.corrcoef(rows.numpy().T.astype(float)))
    scales = (values + SHRINKAGE) ** -0.5
    matrix = directions * scales @ directions.T / np.sqrt((values * scales**2).mean())
    wanted = (rows[200:].numpy() - rows.numpy().mean(0)) / rows.numpy().std(0) @ matrix
    np.testing.assert_allclose(whitened.numpy(), wanted, atol=2e-4)


def test_no_direction_rules():
    """What 60 channels share has 50 times the variance of a direction of one alone; whitened, less than 10 times."""
    generator = torch.Generator().manual_seed(0)
    own, shared = torch.randn(20_000, 60, generator=generator), torch.randn(20_000, 1, generator=generator)
    rows = own + shared * 0.9
    before = torch.linalg.eigvalsh(torch.corrcoef(rows.T))
    after = torch.linalg.eigvalsh(torch.cov(Whitening(60)(rows).T))
    assert after.mean() == pytest.approx(1, abs=1e-2)
    assert before[-1] / before[:-1].mean() > 45
    assert 1 < after[-1] / after[:-1].mean() < 10


def test_the_scale_of_channels_does_not_matter():
    rows = correlated(300)
    scaled = rows * torch.tensor([1e-2, 0.1, 1, 3, 10, 100]) + 5
    torch.testing.assert_close(Whitening(6)(scaled), Whitening(6)(rows), atol=2e-3, rtol=1e-3)


def test_calibration_ends_and_eval_mode_changes_nothing():
    norm = Whitening(6)
    for seed in range(CALIBRATION_BATCHES):
        norm(correlated(20, seed))
    fixed = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(correlated(20) * 100)
    norm.eval()(correlated(20) * 100)
    for name, value in norm.state_dict().items():
        torch.testing.assert_close(value, fixed[name], atol=0, rtol=0)
    assert int(fixed["num_batches"]) == CALIBRATION_BATCHES


def test_resumed_from_a_checkpoint_it_goes_on_as_it_would_have():
    """Also when weights are loaded into a module that has been used."""
    norm, resumed = Whitening(6), Whitening(6)
    resumed(correlated(20, 99))
    for seed in range(3):
        norm(correlated(20, seed))
    resumed.load_state_dict(norm.state_dict())
    for seed in range(3, 9):
        torch.testing.assert_close(resumed(correlated(20, seed)), norm(correlated(20, seed)), atol=0, rtol=0)


@pytest.mark.parametrize("rows", [torch.full((4, 6), 3.0), torch.zeros(1, 6)], ids=["constant", "one_row"])
def test_no_variance_gives_zeros(rows):
    assert Whitening(6)(rows).abs().max() < 1e-3


def test_features_that_are_not_finite_give_no_error_of_linear_algebra():
    """The loss is not finite then, and the trainer skips the step and restores the buffers."""
    norm = Whitening(6)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    assert norm(torch.full((4, 6), torch.inf)).isnan().all()
    for name, value in before.items():
        getattr(norm, name).copy_(value)
    fresh = Whitening(6)
    torch.testing.assert_close(norm(correlated(50)), fresh(correlated(50)), atol=0, rtol=0)


def test_mixed_precision_does_not_reach_it():
    rows = correlated(100)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = Whitening(6)(rows)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, Whitening(6)(rows), atol=0, rtol=0)


def test_maps_and_chosen_positions():
    """Of a map every chosen position is a row, after LayerNorm; the others count nowhere and get no target."""
    maps = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    chosen = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    rows = torch.nn.functional.layer_norm(maps.permute(0, 2, 3, 1), (6,), eps=1e-6)
    whitened = TargetNorm("whiten", 6)(maps, chosen).permute(0, 2, 3, 1)
    torch.testing.assert_close(whitened[chosen], Whitening(6)(rows[chosen]))
    assert not whitened[~chosen].any()
    everywhere = TargetNorm("whiten", 6)(maps).permute(0, 2, 3, 1)
    torch.testing.assert_close(everywhere.flatten(0, 2), Whitening(6)(rows.flatten(0, 2)))


def worker(rank, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    norm = Whitening(6)
    parts = [norm(correlated(100, seed)[slice(*((0, 30), (30, 100))[rank])]) for seed in range(3)]
    torch.save((torch.cat(parts), norm.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_whiten_as_one(tmp_path):
    """Though they hold unequal parts of a batch."""
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    norm = Whitening(6)
    whole = [norm(correlated(100, seed)) for seed in range(3)]
    for rank, part in enumerate((slice(0, 30), slice(30, 100))):
        rows, state = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(rows, torch.cat([batch[part] for batch in whole]), atol=1e-5, rtol=1e-5)
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(state[name], value, atol=1e-4, rtol=1e-5)
