"""RoB for the training script."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from ...data import DistillationDataset, MultiCropTransform, StreamingDistillationDataset, collate
from ...teachers import TeacherHead
from ..base.settings import Method
from . import RoBConfig, RoBForPreTraining

# Settings that are fields of the distiller's config under the same names.
CONFIG_FIELDS = (
    "image_size",
    "ssl_method",
    "student_head",
    "num_prototypes",
    "head_hidden_size",
    "teacher_temperature",
    "student_temperature",
    "swapped",
    "patch_weight",
    "token_drop_ratio",
)
TITLES = {"dino": "DINO", "swav": "SwAV", "ibot": "iBOT", "msn": "MSN"}


@dataclass
class RoBMethod(Method):
    """RoB: the student learns which prototypes a frozen teacher assigns images to (arXiv:2301.09451)."""

    crop_scale: list[float] = field(
        default_factory=lambda: [0.25, 1.0], metadata={"help": "Share of the area that a global crop shows."}
    )
    ssl_method: str = field(default="dino", metadata={"help": "dino | swav | ibot | msn."})
    teacher_head: str | None = field(
        default=None, metadata={"help": "File with the teacher's own head; none: prototypes are fitted."}
    )
    student_head: str = field(default="ssl", metadata={"help": "ssl | teacher_proto | mlp."})
    num_prototypes: int = field(default=1024, metadata={"help": "Prototypes that images are assigned to."})
    prototype_samples: int = field(
        default=20_000, metadata={"help": "Training images to whose features the prototypes are fitted."}
    )
    head_hidden_size: int = field(default=2048, metadata={"help": "Width inside the student's head."})
    teacher_temperature: float | None = field(
        default=None, metadata={"help": "Of the targets; default: dino, ibot 0.07, swav 0.03, msn 0.025."}
    )
    student_temperature: float = field(default=0.1, metadata={"help": "Of the student's scores."})
    swapped: bool = field(
        default=False, metadata={"help": "A teacher crop supervises every view but its own (the original rule)."}
    )
    patch_weight: float = field(default=1.0, metadata={"help": "Of iBOT's term for hidden patches."})
    token_drop_ratio: float = field(
        default=0.0, metadata={"help": "Share of a ViT student's tokens dropped from global crops (MSN)."}
    )

    global_crops: int = field(default=2, metadata={"help": "Crops of --image_size, which the teacher sees too."})
    local_crops: int = field(default=8, metadata={"help": "Small crops for the student alone."})
    local_crop_size: int = field(default=96, metadata={"help": "Pixels of the local crops."})
    local_crop_scale: list[float] = field(
        default_factory=lambda: [0.05, 0.25], metadata={"help": "Share of the area that a local crop shows."}
    )
    color_distortion: float = field(default=0.5, metadata={"help": "Strength of colour jitter and greying; 0: none."})
    blur_probability: list[float] = field(
        default_factory=lambda: [1.0, 0.1, 0.5], metadata={"help": "Of the first global crop, the others, local ones."}
    )
    solarize_probability: list[float] = field(
        default_factory=lambda: [0.0, 0.2, 0.0], metadata={"help": "Of the first global crop, the others, local ones."}
    )

    def __post_init__(self) -> None:
        for name in ("blur_probability", "solarize_probability"):
            if len(getattr(self, name)) != 3:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but it must be three numbers: for the first global crop, the "
                    f"other global crops, and the local crops (--{name})."
                )
        if self.teacher_head is None and self.prototype_samples < self.num_prototypes:
            raise ValueError(
                f"prototype_samples is {self.prototype_samples}, but {self.num_prototypes} prototypes need at least "
                f"as many images: raise --prototype_samples or lower --num_prototypes."
            )

    @property
    def title(self) -> str:
        """RoB with the method whose branch it replaces."""
        return f"RoB-{TITLES.get(self.ssl_method, self.ssl_method)}"

    def build_model(self) -> RoBForPreTraining:
        """Student and head, with the teacher."""
        settings = {name: getattr(self, name) for name in CONFIG_FIELDS}
        student_config = self.student_config()
        RoBConfig(student_config=student_config, **settings)  # refuses a wrong value before the teacher is loaded
        head = self.teacher_head and TeacherHead.from_file(self.teacher_head, self.ssl_method)
        teacher = self.load_any_teacher()
        config = RoBConfig.for_teacher(teacher, student_config, head, **settings)
        model = RoBForPreTraining(config).attach_teacher(teacher, head)
        self.load_student(model.student)
        return model

    def training_data(self, model: RoBForPreTraining, seed: int, skipped_log: Path) -> Dataset:
        """Several crops of every image."""

        def crop(kind: int, **settings):
            return self.crop(
                model,
                color_distortion=self.color_distortion,
                blur_probability=self.blur_probability[kind],
                solarize_probability=self.solarize_probability[kind],
                **settings,
            )

        local = crop(2, image_size=self.local_crop_size, crop_scale=tuple(self.local_crop_scale))
        views = [crop(min(view, 1)) for view in range(self.global_crops)]
        grid = model.config.student_grid if self.ssl_method == "ibot" else None
        transform = MultiCropTransform(tuple(views), local, self.local_crops, grid)
        return self.dataset_of(transform, seed, skipped_log)

    def prepare(self, model: RoBForPreTraining, seed: int) -> None:
        """Fit the prototypes to the teacher's features of undistorted training images; the same in every process."""
        if self.teacher_head is not None:
            return
        kind = StreamingDistillationDataset if self.streaming else DistillationDataset
        count = min(self.prototype_samples, self.max_samples or self.prototype_samples)
        source = self.open_split(self.split, count, self.streaming)
        images = kind(source, self.crop(model, train=False), seed=seed)
        model.fit_prototypes(DataLoader(images, batch_size=64, collate_fn=collate), seed=seed)

    def describe_objective(self, model: RoBForPreTraining) -> list[tuple[str, str]]:
        """Assignment and crops."""
        rule = "swapped" if self.swapped else "not swapped"
        patches = f", patches {self.patch_weight:g}" if self.ssl_method == "ibot" else ""
        return [
            (
                "objective",
                f"{self.title}, {model.config.num_prototypes} prototypes, head {self.student_head}, {rule}, "
                f"temperatures {model.config.teacher_temperature} and {self.student_temperature}{patches}",
            ),
            (
                "crops",
                f"{self.global_crops} of {self.image_size} px, {self.local_crops} of {self.local_crop_size} px for "
                f"the student alone",
            ),
        ]
