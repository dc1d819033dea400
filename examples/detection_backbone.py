"""A student as backbone of a detector, by stock classes of transformers; offline, after `make quickstart`:

    python examples/detection_backbone.py --student runs/quickstart/hgkd/student

Trains RT-DETR on scenes of digits (needs the extra `detection`). `training/finetune.py --task object-detection` does
so with your own images, and with every student: transformers has no backbone class for some.
"""

from scenes import SIDE, arguments, fine_tune, write_scenes
from transformers import AutoConfig, AutoModel, RTDetrConfig, RTDetrForObjectDetection

from hgkd_hf.finetuning.detection import PRIOR_SCORE, ObjectDetection, initialise_head

WIDTH = 128


def detector(student: str, labels: dict) -> RTDetrForObjectDetection:
    backbone = AutoConfig.from_pretrained(student)  # of a ResNet: its stages have strides 4, 8, 16, ...
    channels = backbone.hidden_sizes[1:]
    backbone.out_features = backbone.stage_names[-len(channels) :]
    config = RTDetrConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=channels,
        feat_strides=[8 << level for level in range(len(channels))],
        num_feature_levels=len(channels),
        encode_proj_layers=[len(channels) - 1],
        decoder_in_channels=[WIDTH] * len(channels),
        encoder_hidden_dim=WIDTH,
        d_model=WIDTH,
        decoder_layers=3,
        num_queries=30,
        initializer_bias_prior_prob=PRIOR_SCORE,
        **labels,
    )
    model = RTDetrForObjectDetection(config)
    initialise_head(model)  # transformers' initial weights are for a checkpoint to be loaded over them
    model.model.backbone.model.load_state_dict(AutoModel.from_pretrained(student).state_dict())
    return model


def main() -> None:
    args = arguments(__doc__, "detection-example", student="runs/quickstart/hgkd/student")
    task = ObjectDetection(
        dataset=str(write_scenes(args.output_dir / "scenes")),
        model=args.student,
        image_column="image",
        eval_split="test",
        image_size=[SIDE],
        scale_range=[0.8, 1.2],
        flip_probability=0,
    )
    metrics = fine_tune(detector(args.student, task.label_maps), task, args, learning_rate=5e-4)
    print(f"average precision {metrics['eval_ap']:.3f}; model: {args.output_dir / 'model'}")


if __name__ == "__main__":
    main()
