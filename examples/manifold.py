"""Manifold distillation on digits, offline: a small ViT's patches learn to relate to each other as a larger one's.

python examples/manifold.py
"""

from digits import LABELS, SIZE, TEACHER, arguments, labelled, train, trained_classifier
from transformers import ViTConfig

from hgkd_hf import ClassifierTeacher, ManifoldDistillationConfig, ManifoldDistillationForImageClassification

STUDENT = ViTConfig(
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=96,
    image_size=SIZE,
    patch_size=4,
    **LABELS,
)


def main() -> None:
    args = arguments(__doc__, "manifold-example")
    # With a real teacher: ClassifierTeacher.from_pretrained("facebook/deit-base-patch16-224", layers=(1, 4, 12)).
    teacher = ClassifierTeacher(trained_classifier(TEACHER, args, "teacher"), layers=(1, 2, 4))

    config = ManifoldDistillationConfig.for_teacher(
        teacher, STUDENT, student_layers=(1, 2, 3), alpha=0.5, beta=1.0, image_size=SIZE
    )
    model = ManifoldDistillationForImageClassification(config).attach_teacher(teacher)
    metrics = train(model, labelled(args.digits), args, "manifold")
    model.to_native().save_pretrained(args.output_dir / "student")
    print(f"student: {metrics['test_accuracy']:.3f} top-1, {args.output_dir / 'student'}")


if __name__ == "__main__":
    main()
