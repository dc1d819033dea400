"""Features that two gloo processes share out have the metrics of one process that has them all."""

from datetime import timedelta
from functools import partial

import datasets
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from hgkd_hf.data import EvaluationDataset, ImageTransform, load_images
from hgkd_hf.evaluation import ProtocolSettings, run_protocols
from hgkd_hf.evaluation.shares import count, share_features, whole

BANK, QUERIES, PROCESSES = 61, 20, 2
BROKEN = (4, 5, 30, 60)  # two in a row, so that both processes show the next; the last, whose next is the first


def write(folder, images, seed):
    """Noise on one of three colours, in a table; some rows hold no image."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for index in range(images):
        pixels = 90 * torch.rand(12, 12, 3, generator=generator)
        pixels[..., index % 3] += 60 * torch.rand((), generator=generator)
        path = folder / f"{seed}-{index}.png"
        Image.fromarray(pixels.byte().numpy()).save(path)
        data = b"broken" if images == BANK and index in BROKEN else path.read_bytes()
        rows.append({"bytes": data, "path": None})
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["r", "g", "b"]))
    labels = [index % 3 for index in range(images)]
    datasets.Dataset.from_dict({"image": rows, "label": labels}, features=features).save_to_disk(folder / str(seed))


def evaluate(folder):
    """Metrics, and the bank."""
    torch.set_num_threads(1)
    sets = (EvaluationDataset(load_images(f"{folder}/{seed}"), ImageTransform(8, train=False)) for seed in (1, 2))
    # Few different values, so that many neighbours are equally near and their order decides.
    bank, queries = (share_features(lambda x: x.mean((2, 3)).mul(4).round(), data, 7, "cpu") for data in sets)
    settings = ProtocolSettings(knn_k=9, shots=(1, 3), draws=2)
    return run_protocols(bank, queries, ("knn", "linear", "low-shot", "representation"), settings), bank


def worker(rank, folder):
    settings = {"init_method": f"file://{folder}/rendezvous", "rank": rank, "world_size": PROCESSES}
    dist.init_process_group("gloo", timeout=timedelta(seconds=60), **settings)
    metrics, bank = evaluate(folder)
    everything = whole(bank)
    torch.save(
        {
            "metrics": metrics,
            "rows": bank.rows,
            "count": count(bank),
            "all": [everything.features, everything.labels, everything.rows],
        },
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process finds, and what each of two."""
    folder = tmp_path_factory.mktemp("shares")
    write(folder, BANK, 1)
    write(folder, QUERIES, 2)
    mp.spawn(worker, args=(str(folder),), nprocs=PROCESSES)
    load = partial(torch.load, weights_only=True)
    return evaluate(folder), [load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def test_metrics_are_those_of_one_process(found):
    (metrics, _), parts = found
    assert 0.4 < metrics["knn_accuracy"] < 1
    for part in parts:
        assert part["metrics"] == pytest.approx(metrics, abs=1e-9)


def test_each_readable_image_is_in_one_share(found):
    (_, bank), parts = found
    assert bank.rows.tolist() == sorted(set(range(BANK)) - set(BROKEN))
    rows = [part["rows"].tolist() for part in parts]
    assert not set(rows[0]) & set(rows[1])
    assert sorted(rows[0] + rows[1]) == bank.rows.tolist()
    assert min(map(len, rows)) > BANK // 3
    for part in parts:
        assert part["count"] == len(bank)
        for values, wanted in zip(part["all"], (bank.features, bank.labels, bank.rows)):
            assert torch.equal(values, wanted)
