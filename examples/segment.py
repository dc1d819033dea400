"""Segment with a student whose pre-trained decoder is kept; offline, after `make quickstart`:

    python examples/segment.py --student runs/quickstart/spark/student/sparse_unet

`sparse_unet/` in a student's folder holds the student with its decoder. This one was trained by pixels and reaches up
to the image; one that was trained by features ends at the teacher's grid, and the rest of the way begins fresh.
"""

import torch
from PIL import Image
from scenes import NAMES, SIDE, arguments, fine_tune, write_scenes

from hgkd_hf import SparseUNetForSemanticSegmentation
from hgkd_hf.finetuning.masks import IGNORED
from hgkd_hf.finetuning.segmentation import SemanticSegmentation


def main() -> None:
    args = arguments(__doc__, "segmentation-example", student="runs/quickstart/spark/student/sparse_unet")
    task = SemanticSegmentation(
        dataset=str(write_scenes(args.output_dir / "scenes")),
        model=args.student,
        image_column="image",
        class_names=["ground", *NAMES],
        eval_split="test",
        image_size=[SIDE],
        scale_range=[0.8, 1.2],
        flip_probability=0,
    )
    settings = {"semantic_loss_ignore_index": IGNORED, **task.label_maps}
    model = SparseUNetForSemanticSegmentation.from_student(args.student, decoder_stride=2, **settings)
    metrics = fine_tune(model, task, args, learning_rate=5e-3)

    model = model.eval()
    with torch.no_grad():
        outputs = model(task.evaluation_data()[0]["pixel_values"][None].to(model.device))
    classes = task.image_processor().post_process_semantic_segmentation(outputs)[0]
    Image.fromarray((80 * classes).byte().cpu().numpy()).save(args.output_dir / "classes.png")
    print(f"mean IoU {metrics['eval_mean_iou']:.3f}; model: {args.output_dir / 'model'}")
    print(f"classes of a scene, as greys: {args.output_dir / 'classes.png'}")


if __name__ == "__main__":
    main()
