"""RoB as commands run it: several crops of every image, and prototypes that are fitted before the training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from ...data import (
    DistillationDataset,
    ImageLoader,
    ImageTransform,
    MultiCropTransform,
    StreamingDistillationDataset,
    open_split,
)
from ...teachers import TeacherHead
from ..base.method import Method
from .modeling import RoBConfig, RoBForPreTraining
from .settings import RoBCommandSettings, RoBSettings


@dataclass
class RoBMethod(RoBSettings, RoBCommandSettings, Method):
    """RoB: the student learns which prototypes a frozen teacher assigns images to (arXiv:2301.09451)."""

    model_class = RoBForPreTraining

    def check(self) -> None:
        """Also refuse lists of other lengths, and too few images to fit the prototypes to."""
        super().check()
        for name in ("blur_probability", "solarize_probability"):
            if len(getattr(self, name)) != 3:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but it must be three numbers: for the first global crop, the "
                    f"other global crops, and the local crops (--{name})."
                )
        if self.teacher_cache is not None:
            raise ValueError("RoB shows its teacher several crops of an image at once: leave --teacher_cache out.")
        if self.teacher_head is None and self.prototype_samples < self.num_prototypes:
            raise ValueError(
                f"prototype_samples is {self.prototype_samples}, but {self.num_prototypes} prototypes need at least "
                f"as many images: raise --prototype_samples or lower --num_prototypes."
            )

    def build_model(self) -> RoBForPreTraining:
        """Student and head, with the teacher and, if it is given, its own head."""
        student_config, shared = self.student_config(), self.config_settings()
        RoBConfig(student_config=student_config, **shared)  # refuses a wrong value before the teacher is loaded
        head = self.teacher_head and TeacherHead.from_file(self.teacher_head, self.ssl_method)
        teacher = self.load_teacher(student_config)
        model = RoBForPreTraining(RoBConfig.for_teacher(teacher, student_config, head, **shared))
        self.load_student(model.encoder)
        return model.attach_teacher(teacher, head)

    def training_data(self, model: RoBForPreTraining, seed: int, skipped_log: Path | None) -> Dataset:
        """Several crops of every image."""

        def crop(kind: int, **settings) -> ImageTransform:
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
        source = open_split(self, streaming=self.streaming, max_samples=count)
        images = kind(source, self.crop(model, train=False), seed=seed)
        model.fit_prototypes(ImageLoader(images, batch_size=64), seed=seed)

    def describe(self, model: RoBForPreTraining) -> dict[str, str]:
        """With the crops."""
        return super().describe(model) | {
            "crops": f"{self.global_crops} of {self.image_size} px, {self.local_crops} of {self.local_crop_size} px "
            f"for the student alone"
        }
