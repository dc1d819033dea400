"""Whitened targets: by hand, their covariance, when statistics are fixed, their checkpoint, and many processes."""

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
    """Variances 3.7 and 0.7 along the axes: with 0.3 of their mean, 0.66, they are 4.36 and 1.36."""
    matrix = whitening_matrix(torch.tensor([[3.7, 0.0], [0.0, 0.7]]))
    wanted = np.array([4.36, 1.36]) ** -0.5
    wanted /= np.sqrt((3.7 / 4.36 + 0.7 / 1.36) / 2)
    torch.testing.assert_close(matrix, torch.diag(torch.tensor(wanted, dtype=torch.float32)), atol=1e-6, rtol=0)


def test_statistics_are_those_of_all_batches_so_far():
    """After two batches, as after one of both: numpy's covariance in the formula."""
    rows = correlated(400)
    norm = Whitening(6)
    norm(rows[:200])
    whitened = norm(rows[200:])
    values, directions = np.linalg.eigh(np.cov(rows.numpy().T.astype(float), bias=True))
    scales = (values + SHRINKAGE * values.mean()) ** -0.5
    matrix = directions * scales @ directions.T / np.sqrt((values * scales**2).mean())
    wanted = (rows[200:].numpy() - rows.numpy().mean(0)) @ matrix
    np.testing.assert_allclose(whitened.numpy(), wanted, atol=2e-4)


def test_no_direction_rules():
    """A direction of 100 times the variance of each of 30 others gets less than 5 times theirs; the mean stays 1."""
    rows = torch.randn(5000, 31, generator=torch.Generator().manual_seed(0))
    rows[:, 0] *= 10
    variances = Whitening(31)(rows).var(0)
    assert variances.mean() == pytest.approx(1, abs=1e-2)
    assert 1 < variances[0] / variances[1:].mean() < 5


def test_a_rotation_of_the_channels_rotates_the_targets():
    """ZCA knows no preferred axes, so that cosine and squared error are those of any other orthogonal basis."""
    rows = correlated(300)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(Whitening(6)(rows @ rotation), Whitening(6)(rows) @ rotation, atol=1e-3, rtol=1e-3)


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
