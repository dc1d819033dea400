"""A page on which one sees what a student learned: what it fills in, and which images it finds alike.

    python examples/demo_app.py --student runs/mine --images path/to/images

`--student` is a run's folder (its student fills in hidden cells beside its teacher), or a stock student's folder or
Hub id (its feature maps are shown). As a Space, this file is app.py, with STUDENT and IMAGES as its variables. Uploads
are bounded in bytes and pixels, and deleted after some minutes.
"""

import argparse
import os
from functools import partial
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig

from hgkd_hf import HGKDForPreTraining, PatchTeacher, random_cell_mask
from hgkd_hf.data import CorruptImageError, DistillationDataset, ImageLoader, decode_image, load_images
from hgkd_hf.data.decode import open_image
from hgkd_hf.deployment import load_student, load_transform
from hgkd_hf.evaluation import Features, extract_features, pooled_features
from hgkd_hf.visualize import feature_columns, nearest, prediction_columns

MAX_FILE_SIZE = "10mb"
MAX_PIXELS = 2**25  # 100 MB once decoded
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # readers that run no other program
UPLOADS_LIVE = 600  # seconds


class Demo:
    """A student, with its teacher where there is one, and images among which to look for neighbours."""

    def __init__(self, student: str, images: str | None, samples: int = 200):
        self.distiller, self.encoder = None, None
        if AutoConfig.from_pretrained(student).model_type == "hgkd":
            self.distiller = HGKDForPreTraining.from_pretrained(student).eval()
            if self.distiller.config.feature_weight:
                self.distiller.attach_teacher(load_teacher(self.distiller.config))
            self.encoder = self.distiller.to_native()
        self.encoder = self.encoder or load_student(student).base_model
        self.transform = load_transform(student)
        self.bank = None
        if images:
            self.images = DistillationDataset(load_images(images, max_samples=samples), self.transform, seed=0)
            loader = ImageLoader(self.images, batch_size=32)
            features = extract_features(partial(pooled_features, self.encoder), loader, "cpu", module=self.encoder)
            self.bank = features.each_once()

    @torch.no_grad()
    def look(self, upload: str | None, mask_ratio: float, seed: int) -> tuple[list, list]:
        """Pictures of the student's view of an uploaded file, and the images most like it, each (picture, caption)."""
        pixels = self.transform.normalize(self.transform(read_upload(upload))[None])
        if self.distiller is None:
            columns = feature_columns(self.encoder, pixels, self.transform.image_mean, self.transform.image_std)
        else:
            generator = torch.Generator().manual_seed(int(seed))
            mask = random_cell_mask(self.distiller.config.cell_grid, mask_ratio, generator=generator)
            columns = prediction_columns(self.distiller, pixels, mask[None])
        pictures = [(picture(values[0]), title) for title, values in columns.items()]
        if self.bank is None:
            return pictures, []
        found = nearest(self.bank, Features(pooled_features(self.encoder, pixels)), 8)[0].tolist()
        return pictures, [(self.picture_of(self.bank.row(i)), f"{place}.") for place, i in enumerate(found, 1)]

    def picture_of(self, row: int) -> np.ndarray:
        """An image of the searched ones."""
        return picture(self.images[row]["pixel_values"].permute(1, 2, 0) / 255)


def read_upload(path: str | None) -> Image.Image:
    """An uploaded file as RGB; its pixels are counted before they are decoded.

    Raises:
        gr.Error: there is none, or it is too large or no image; the page shows the sentence.
    """
    if path is None or not Path(path).is_file():
        raise sentence("Choose an image first." if path is None else "The upload was deleted: choose the image again.")
    try:
        data = Path(path).read_bytes()
        image = open_image(data, name="The file")
        if image.format not in FORMATS:
            raise sentence(f"The file is of the format {image.format}: choose one of {', '.join(FORMATS)}.")
        if image.width * image.height > MAX_PIXELS:
            raise sentence(
                f"The image has {image.width}x{image.height} pixels, more than {MAX_PIXELS}: scale it down."
            )
        return decode_image(data, name="The file")
    except CorruptImageError as error:
        raise sentence(str(error)) from error


def sentence(message: str) -> gr.Error:
    """An error that the page shows, and that is none of the server's."""
    return gr.Error(message, print_exception=False)


def load_teacher(config) -> PatchTeacher:
    """The teacher that a distiller was trained with, as its config names it.

    Raises:
        ValueError: there were several.
    """
    if isinstance(config.teacher_name_or_path, list):
        raise ValueError("the page shows what one teacher sees, but this run had several: choose another run.")
    settings = {"revision": config.teacher_revision, "layers": config.teacher_layers}
    settings |= {"image_size": tuple(config.teacher_image_size), "teacher_input": config.teacher_input}
    return PatchTeacher.from_pretrained(config.teacher_name_or_path, **settings)


def picture(values: torch.Tensor, side: int = 224) -> np.ndarray:
    """(h, w, 3) in [0, 1], or (h, w) of any range, as an enlarged uint8 picture."""
    if values.dim() == 2:
        values = (values / values.max().clamp(min=1e-8))[..., None].expand(-1, -1, 3)
    small = Image.fromarray((255 * values).round().byte().numpy())
    return np.asarray(small.resize((side, side), Image.Resampling.NEAREST))


def build(demo: Demo, title: str) -> gr.Blocks:
    with gr.Blocks(title="What the student learned", delete_cache=(UPLOADS_LIVE // 10, UPLOADS_LIVE)) as page:
        gr.Markdown(f"# What the student learned\n`{title}` sees the cells that are not grey, and predicts the rest.")
        with gr.Row():
            with gr.Column(scale=1):
                image = gr.Image(type="filepath", label="Image", height=260)
                image.preprocess = lambda file: file and file.path  # gradio's own would decode whatever comes
                ratio = gr.Slider(0.05, 0.95, 0.6, step=0.05, label="Share of hidden cells")
                seed = gr.Slider(0, 99, 0, step=1, label="Which cells")
                button = gr.Button("Look", variant="primary")
            with gr.Column(scale=3):
                pictures = gr.Gallery(label="What it sees and predicts", columns=5, height=260, object_fit="contain")
                alike = gr.Gallery(label="Images it finds alike", columns=8, height=180, object_fit="contain")
        gr.on([button.click, ratio.release, seed.release], demo.look, [image, ratio, seed], [pictures, alike])
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default=os.environ.get("STUDENT"), help="Run, student's folder or Hub id.")
    parser.add_argument("--images", default=os.environ.get("IMAGES"), help="Images to search; optional.")
    parser.add_argument("--port", type=int, help="Default: the first free one from 7860 on.")
    args = parser.parse_args()
    if args.student is None:
        parser.error("name a student with --student")
    page = build(Demo(args.student, args.images), os.path.basename(args.student.rstrip("/")))
    page.launch(server_port=args.port, max_file_size=MAX_FILE_SIZE)
