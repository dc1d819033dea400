"""Pre-train a small masked autoencoder (MAE, arXiv 2111.06377) as a teacher.

    hgkd pretrain-teacher --dataset path/to/images --image_size 64 --patch_size 8

The model is transformers' own ViTMAEForPreTraining; its folder is a teacher for `hgkd distill`, with the decoder
that `teacher_input: masked` needs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.run_files import RECIPE_FILE
from ..checkpoints.whole_folders import write_whole, written_aside
from ..methods.base.command_settings import DatasetSettings
from ..methods.base.settings import setting
from ..training.settings import TrainingSettings
from .errors import run_script
from .output import hush, log_to, show, show_facts
from .parser import answer_help
from .recipe import parse_recipe, to_recipe

if TYPE_CHECKING:
    from transformers import ViTMAEConfig

    from ..training.arguments import DistillationArguments


@dataclass
class TeacherArguments(DatasetSettings):
    """The size of the autoencoder, and its images."""

    max_samples: int | None = setting(None, "Use at most so many images.", minimum=1)
    image_size: int = setting(224, "Pixels of the crops.", minimum=1)
    crop_scale: list[float] = setting([0.2, 1.0], "Share of the area cropped.")
    flip_probability: float = setting(0.5, "Of a horizontal flip.", minimum=0, maximum=1)
    patch_size: int = setting(16, "Pixels of a patch.", minimum=1)
    hidden_size: int = setting(192, "Width of the encoder.", minimum=1)
    num_hidden_layers: int = setting(12, "Blocks of the encoder.", minimum=1)
    decoder_hidden_size: int = setting(128, "Width of the decoder.", minimum=1)
    decoder_num_hidden_layers: int = setting(4, "Blocks of the decoder.", minimum=1)
    head_size: int = setting(32, "Channels of an attention head.", minimum=1)
    mask_ratio: float = setting(0.75, "Share of the patches that are hidden.", above=0, below=1)
    resume: bool = setting(False, "Resume from the last checkpoint in --output_dir.")

    def check(self) -> None:
        """Also refuse sizes that do not divide."""
        super().check()
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}.")
        for name in ("hidden_size", "decoder_hidden_size"):
            if getattr(self, name) % self.head_size:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of head_size {self.head_size}.")


def build_config(args: TeacherArguments) -> ViTMAEConfig:
    from transformers import ViTMAEConfig

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
        }
        show_facts(facts | training.describe())
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
