"""Distil from a stream of the Hub on two machines: nothing is downloaded first, and a stopped run resumes.

The same on both, with the address of one of them; without GPUs, one process on each:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-id distil --rdzv-backend c10d --rdzv-endpoint 10.0.0.1:29500 \\
        examples/stream_two_machines.py --dataset ethz/food101 --output_dir /shared/runs/streamed

--output_dir must be one folder that both see. --dataset may be a folder of parquet files too.
"""

import argparse

from transformers import set_seed

from hgkd_hf import HGKDConfig, HGKDForPreTraining, PatchTeacher, SparseUNetConfig
from hgkd_hf.checkpoints.folders import newest_checkpoint
from hgkd_hf.cli.errors import leave_processes
from hgkd_hf.data import ImageTransform, StreamingDistillationDataset, load_images
from hgkd_hf.hub import StudentPublisher
from hgkd_hf.methods.hgkd.modeling import aligned_teacher_image_size
from hgkd_hf.students.presets import student_encoder_config
from hgkd_hf.training.trainer import DistillationArguments, DistillationTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ethz/food101")
    parser.add_argument("--teacher", default="facebook/dinov2-base")
    parser.add_argument("--student", default="resnet-50", help="a name, a Hub id, a folder, or a config as JSON")
    parser.add_argument("--image_size", default=224, type=int)
    parser.add_argument("--batch_size", default=64, type=int, help="of each process")
    parser.add_argument("--workers", default=8, type=int, help="of each process, which read files of their own")
    parser.add_argument("--steps", default=10_000, type=int)
    parser.add_argument("--save_steps", default=500, type=int)
    parser.add_argument("--output_dir", default="runs/streamed")
    args = parser.parse_args()

    set_seed(0)
    student = SparseUNetConfig(encoder_config=student_encoder_config(args.student))
    size = aligned_teacher_image_size(PatchTeacher.patch_size_of(args.teacher), args.image_size, student)
    teacher = PatchTeacher.from_pretrained(args.teacher, image_size=size)
    config = HGKDConfig.for_teacher(teacher, student, image_size=args.image_size)
    model = HGKDForPreTraining(config).attach_teacher(teacher)
    images, transform = load_images(args.dataset, streaming=True), ImageTransform(args.image_size, train=True)
    masks = {"cell_grid": config.cell_grid, "mask_ratio": config.mask_ratio}
    data = StreamingDistillationDataset(images, transform, seed=0, shuffle_buffer=1000, **masks)
    settings = {"per_device_train_batch_size": args.batch_size, "dataloader_num_workers": args.workers}
    settings |= {"max_steps": args.steps, "save_steps": args.save_steps}
    trainer = DistillationTrainer(model, DistillationArguments(args.output_dir, **settings), data)
    publisher = StudentPublisher(trainer)  # fills the student's card while it trains
    trainer.add_callback(publisher)
    trainer.train(resume_from_checkpoint=newest_checkpoint(args.output_dir))
    if trainer.is_world_process_zero():
        print(f"student: {publisher.export_student()}")


if __name__ == "__main__":
    main()
    leave_processes()  # before the interpreter ends: threads of the group do not always survive that
