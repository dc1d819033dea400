"""MSDCRD on digits, offline: regions of a ResNet's map find their own among those of a ViT's, at several scales.

    python examples/msdcrd.py

An independent reading of the abstract of arXiv:2502.05835.
"""

from digits import SIZE, STUDENT, TEACHER, arguments, labelled, train, trained_classifier

from hgkd_hf import ClassifierTeacher, MSDCRDConfig, MSDCRDForImageClassification


def main() -> None:
    args = arguments(__doc__, "msdcrd-example")
    # With a real teacher: ClassifierTeacher.from_pretrained("microsoft/resnet-50").
    teacher = ClassifierTeacher(trained_classifier(TEACHER, args, "teacher"))

    config = MSDCRDConfig.for_teacher(teacher, STUDENT, selection="consistent", warmup_batches=50, image_size=SIZE)
    model = MSDCRDForImageClassification(config).attach_teacher(teacher)
    metrics = train(model, labelled(args.digits), args, "msdcrd")
    model.to_native().save_pretrained(args.output_dir / "student")
    print(f"student: {metrics['test_accuracy']:.3f} top-1, {args.output_dir / 'student'}")


if __name__ == "__main__":
    main()
