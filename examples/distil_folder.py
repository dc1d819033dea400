"""Distil a vision transformer into a small CNN on a folder of images: the shortest complete run.

    python examples/distil_folder.py path/to/images

The teacher is a name on the Hub or a folder. Offline, after `make quickstart`:

    python examples/distil_folder.py runs/quickstart/images --teacher runs/quickstart/teacher --image_size 64
"""

import argparse

from hgkd_hf import HGKDConfig, HGKDForPreTraining, PatchTeacher, SparseUNetConfig
from hgkd_hf.data import DistillationDataset, ImageTransform, load_images
from hgkd_hf.hub import StudentPublisher
from hgkd_hf.methods.hgkd.modeling import aligned_teacher_image_size
from hgkd_hf.students.presets import student_encoder_config
from hgkd_hf.training.trainer import DistillationArguments, DistillationTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="a folder of images or of parquet files, or a dataset's Hub id")
    parser.add_argument("--teacher", default="facebook/dinov2-base")
    parser.add_argument("--student", default="resnet-18", help="a name, a Hub id, a folder, or a config as JSON")
    parser.add_argument("--image_size", default=224, type=int)
    parser.add_argument("--batch_size", default=64, type=int)
    parser.add_argument("--steps", default=1000, type=int)
    parser.add_argument("--output_dir", default="runs/folder")
    args = parser.parse_args()

    student = SparseUNetConfig(encoder_config=student_encoder_config(args.student))
    # At this size, the teacher's tokens divide the student's mask cells evenly.
    size = aligned_teacher_image_size(PatchTeacher.patch_size_of(args.teacher), args.image_size, student)
    teacher = PatchTeacher.from_pretrained(args.teacher, image_size=size)
    config = HGKDConfig.for_teacher(teacher, student, image_size=args.image_size, mask_ratio=0.6)
    model = HGKDForPreTraining(config).attach_teacher(teacher)

    images, transform = load_images(args.images), ImageTransform(args.image_size, train=True)
    data = DistillationDataset(images, transform, seed=0, cell_grid=config.cell_grid, mask_ratio=config.mask_ratio)
    settings = {"per_device_train_batch_size": args.batch_size, "max_steps": args.steps, "save_strategy": "no"}
    trainer = DistillationTrainer(model, DistillationArguments(args.output_dir, **settings), data)
    publisher = StudentPublisher(trainer)  # fills the student's card while it trains
    trainer.add_callback(publisher)
    trainer.train()
    print(f"student: {publisher.export_student()}")


if __name__ == "__main__":
    main()
