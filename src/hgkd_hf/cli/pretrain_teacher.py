"""Pre-train a small masked autoencoder (MAE, arXiv 2111.06377) as a teacher.

    hgkd pretrain-teacher --dataset path/to/images --image_size 64 --patch_size 8

The model is transformers' own ViTMAEForPreTraining; its folder is a teacher for `hgkd distill`, with the decoder
that `teacher_input: masked` needs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.whole_folders import write_whole, written_aside
from ..training.settings import TrainingSettings
from .errors import run_script
from .output import hush, log_to, show, show_facts
from .parser import answer_help
from .recipe import RECIPE_FILE, parse_recipe, to_recipe

if TYPE_CHECKING:
    from transformers import ViTMAEConfig

    from ..training.arguments import DistillationArguments


@dataclass
class TeacherArguments:
    """The size of the autoencoder, and its images."""

    dataset: str = field(metadata={"help": "Hub id or path: a folder of images, of parquet files, a saved dataset."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset."})
    split: str = field(default="train", metadata={"help": "Split to train on."})
    image_column: str | None = field(default=None, metadata={"help": "Needed where several columns hold images."})
    allow_remote_images: bool = field(
        default=False, metadata={"help": "Open images that rows name by a URL or by a path outside of the dataset."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Use at most so many images."})
    image_size: int = field(default=224, metadata={"help": "Pixels of the crops."})
    crop_scale: list[float] = field(
        default_factory=lambda: [0.2, 1.0], metadata={"help": "Share of the area cropped."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Of a horizontal flip."})
    patch_size: int = field(default=16, metadata={"help": "Pixels of a patch."})
    hidden_size: int = field(default=192, metadata={"help": "Width of the encoder."})
    num_hidden_layers: int = field(default=12, metadata={"help": "Blocks of the encoder."})
    decoder_hidden_size: int = field(default=128, metadata={"help": "Width of the decoder."})
    decoder_num_hidden_layers: int = field(default=4, metadata={"help": "Blocks of the decoder."})
    head_size: int = field(default=32, metadata={"help": "Channels of an attention head."})
    mask_ratio: float = field(default=0.75, metadata={"help": "Share of the patches that are hidden."})
    resume: bool = field(default=False, metadata={"help": "Continue from the last checkpoint in --output_dir."})


def build_config(args: TeacherArguments) -> ViTMAEConfig:
    from transformers import ViTMAEConfig

    if args.image_size % args.patch_size:
        raise ValueError(f"image_size {args.image_size} is not a multiple of patch_size {args.patch_size}.")
    for name in ("hidden_size", "decoder_hidden_size"):
        if getattr(args, name) % args.head_size:
            raise ValueError(f"{name} {getattr(args, name)} is not a multiple of head_size {args.head_size}.")
    if not 0 < args.mask_ratio < 1:
        raise ValueError(f"mask_ratio is {args.mask_ratio}, but it must be above 0 and below 1.")
    return ViTMAEConfig(
        image_size=args.image_size,
        patch_size=args.patch_size,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.hidden_size // args.head_size,
        intermediate_size=4 * args.hidden_size,
        decoder_hidden_size=args.decoder_hidden_size,
        decoder_num_hidden_layers=args.decoder_num_hidden_layers,
        decoder_num_attention_heads=args.decoder_hidden_size // args.head_size,
        decoder_intermediate_size=4 * args.decoder_hidden_size,
        mask_ratio=args.mask_ratio,
        norm_pix_loss=True,
    )


def main(arguments: list[str] | None = None) -> Path:
    answer_help((TeacherArguments, TrainingSettings), "pretrain-teacher", __doc__, arguments)
    from ..training.arguments import DistillationArguments
    from .resume import run_folder

    args, training = parse_recipe((TeacherArguments, DistillationArguments), arguments, __doc__, "pretrain-teacher")
    with run_folder(training):
        return pretrain(args, training)


def pretrain(args: TeacherArguments, training: DistillationArguments) -> Path:
    """The whole run, of which the teacher's folder is returned."""
    from transformers import ViTImageProcessorPil, ViTMAEForPreTraining, set_seed

    from ..checkpoints.identity import check_same_run
    from ..data import DistillationDataset, ImageTransform, open_split
    from ..report import ReportCallback
    from ..teachers.masked_autoencoder import MaskedAutoencoder
    from ..training.base import BaseTrainer
    from .resume import checkpoint_to_resume

    hush()
    config = build_config(args)
    checkpoint = checkpoint_to_resume(training.output_dir, args.resume)
    set_seed(training.seed)
    source = open_split(args, labels_field=None)
    transform = ImageTransform(
        args.image_size, train=True, crop_scale=tuple(args.crop_scale), flip_probability=args.flip_probability
    )
    dataset = DistillationDataset(source, transform, seed=training.seed, cell_grid=None, mask_ratio=0.0)
    processor = ViTImageProcessorPil(
        size={"height": args.image_size, "width": args.image_size},
        image_mean=list(transform.image_mean),
        image_std=list(transform.image_std),
    )
    log_to(Path(training.output_dir))
    trainer = BaseTrainer(MaskedAutoencoder(config), training, dataset, image_processor=processor)
    trainer.add_callback(ReportCallback(trainer))
    identity = {name: value for name, value in asdict(args).items() if name != "resume"}
    check_same_run(
        training.output_dir,
        identity | training.identity() | {"rows": source.num_rows, "images": source.fingerprint},
        resume=args.resume,
        allow_changes=training.allow_changes,
        write=trainer.is_world_process_zero(),
    )
    if trainer.is_world_process_zero():
        facts = {
            "model": f"masked autoencoder, {trainer.model.num_parameters() / 1e6:.1f} M parameters",
            "data": f"{source.name}, {source.num_rows:,} images",
            "training": f"{training.images_per_step} images a step on {training.world_size} process(es)",
        }
        show_facts(facts | ({"auto": training.describe_auto()} if training.auto else {}))
        write_whole(Path(training.output_dir, RECIPE_FILE), to_recipe(args, training))
    result = trainer.train(resume_from_checkpoint=checkpoint)
    teacher = Path(training.output_dir, "teacher")
    if trainer.is_world_process_zero():
        model = ViTMAEForPreTraining(config)
        model.load_state_dict(trainer.model.state_dict())
        with written_aside(teacher) as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        show(f"{result.global_step} steps, mean loss {result.training_loss:.4f}\nteacher: {teacher}")
    return teacher


if __name__ == "__main__":
    run_script(main)
