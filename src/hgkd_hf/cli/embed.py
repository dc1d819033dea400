"""Write the features of all images of a folder or dataset to a table, and draw who is near whom.

    hgkd embed --model runs/mine/student --dataset path/to/images --output_dir runs/embedding
    hgkd embed --model facebook/dinov2-small --dataset uoft-cs/cifar10 --split test --max_samples 2000

Any checkpoint of transformers that gives features of images, any images; labels are kept where there are some. The
output folder gets embeddings.parquet (row, file, label, features), neighbours.png (images and those most alike) and
plane.png (a point an image: UMAP where umap-learn is installed, else principal components).
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..methods.base.command_settings import FrozenFeatures
from ..methods.base.settings import setting
from .errors import run_script
from .output import hush, log_to, show
from .recipe import parse_recipe

if TYPE_CHECKING:
    from ..data import ImageSource, ImageTransform
    from ..evaluation import Features

TABLE, NEIGHBOURS, PLANE = "embeddings.parquet", "neighbours.png", "plane.png"

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class EmbeddingArguments(FrozenFeatures):
    """Which model, on which images."""

    max_samples: int | None = setting(None, "Embed at most so many images, drawn at random.", minimum=1)
    image_size: int | None = setting(None, "Pixels of a side; default: the processor's.", minimum=1)
    seed: int = setting(0, "Of UMAP.")
    output_dir: Path = setting(Path("runs/embedding"), "Where table and pictures go.")


def main(arguments: list[str] | None = None) -> Path:
    (args,) = parse_recipe((EmbeddingArguments,), arguments, __doc__, "embed")
    import pyarrow.parquet  # here and below, after --help is answered

    from ..data import open_split
    from ..deployment import load_transform
    from ..evaluation import best_device, image_set_features
    from ..evaluation.embedding import feature_table
    from ..evaluation.frozen import load_frozen_model

    hush()
    source = open_split(args)
    transform = load_transform(args.model, args.model_revision, args.image_size)
    model = load_frozen_model(args.model, args.model_revision).to(best_device())
    args.output_dir.mkdir(parents=True, exist_ok=True)
    log_to(args.output_dir)
    loading = {"batch_size": args.batch_size, "num_workers": args.num_workers, "labels": False}
    features = image_set_features(model, source, transform, **loading)
    table = args.output_dir / TABLE
    pyarrow.parquet.write_table(feature_table(features, source), table)
    unreadable = source.num_rows - len(features)
    show(
        f"{args.model} on {args.dataset}: {len(features):,} images, {features.features.shape[1]} features each"
        + (f"; {unreadable} could not be read" if unreadable else "")
    )
    show(f"table: {table}")
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("Pictures need matplotlib: pip install 'hgkd_hf[demo]'.")
    else:
        draw(args, source, transform, features)
    return table


def draw(args: EmbeddingArguments, source: ImageSource, transform: ImageTransform, features: Features) -> None:
    """Write the two pictures."""
    from ..evaluation.embedding import project, row_labels
    from ..visualize import embedding_figure, own_neighbours_figure

    def picture(row: int):
        pixels = transform(source.decode(source.dataset[row], min_side=transform.min_decoded_side))
        return pixels.permute(1, 2, 0) / 255

    rows = [features.row(index) for index in range(len(features))]
    labels = None if source.label_column is None else row_labels(source, rows)
    points, method = project(features.features, args.seed)
    figures = {PLANE: embedding_figure(points, method, labels)}
    if len(features) > 1:
        figures[NEIGHBOURS] = own_neighbours_figure(features, picture)
    for name, figure in figures.items():
        figure.savefig(args.output_dir / name, dpi=120)
    show(f"pictures: {', '.join(str(args.output_dir / name) for name in figures)} ({PLANE} by {method})")


if __name__ == "__main__":
    run_script(main)
