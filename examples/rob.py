"""RoB on digits, offline: a ResNet learns, without labels, which prototypes a ViT assigns its crops to.

python examples/rob.py
"""

from digits import SIZE, STUDENT, TEACHER, arguments, train, trained_classifier

from hgkd_hf import PatchTeacher, RoBConfig, RoBForPreTraining
from hgkd_hf.data import DistillationDataset, ImageLoader, ImageTransform, MultiCropTransform, load_images


def main() -> None:
    args = arguments(__doc__, "rob-example")
    # The teacher was trained with labels here, to be quick. With a real one: PatchTeacher.from_pretrained("...").
    teacher = PatchTeacher(trained_classifier(TEACHER, args, "teacher"))

    config = RoBConfig.for_teacher(
        teacher, STUDENT, ssl_method="dino", num_prototypes=64, head_hidden_size=128, image_size=SIZE
    )
    model = RoBForPreTraining(config).attach_teacher(teacher)

    sample = load_images(args.digits, max_samples=1000)
    plain = DistillationDataset(sample, ImageTransform(SIZE, train=False), seed=0)
    model.fit_prototypes(ImageLoader(plain, batch_size=100))

    large = ImageTransform(SIZE, train=True, crop_scale=(0.5, 1.0), flip_probability=0, color_distortion=0.5)
    small = ImageTransform(16, train=True, crop_scale=(0.2, 0.5), flip_probability=0, color_distortion=0.5)
    crops = DistillationDataset(
        load_images(args.digits), MultiCropTransform((large, large), small, num_local=2), seed=0
    )
    metrics = train(model, crops, args, "rob")
    model.to_native().save_pretrained(args.output_dir / "student")
    print(f"student: kNN {metrics['test_knn_accuracy']:.3f}, {args.output_dir / 'student'}")


if __name__ == "__main__":
    main()
