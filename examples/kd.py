"""The baselines on digits, offline: labels alone, logit KD, DKD, FitNets hints, and InfoNCE in one batch.

python examples/kd.py
"""

import torch
from digits import SIZE, STUDENT, TEACHER, arguments, labelled, train, trained_classifier

from hgkd_hf import ClassifierTeacher, KDConfig, KDForImageClassification


def main() -> None:
    args = arguments(__doc__, "kd-example")
    # With a real teacher: ClassifierTeacher.from_pretrained("microsoft/resnet-50").
    teacher = ClassifierTeacher(trained_classifier(TEACHER, args, "teacher"))

    for objective in ("labels", "kd", "dkd", "hint", "contrastive"):
        torch.manual_seed(0)  # every student starts alike
        config = KDConfig.for_teacher(teacher, STUDENT, objective=objective, image_size=SIZE)
        model = KDForImageClassification(config).attach_teacher(teacher)
        metrics = train(model, labelled(args.digits), args, objective)
        model.to_native().save_pretrained(args.output_dir / "student" / objective)
        print(f"{objective}: {metrics['test_accuracy']:.3f} top-1, {args.output_dir / 'student' / objective}")


if __name__ == "__main__":
    main()
