"""The quickstart's teacher: a small stock ViT that learns from labels and outlines of digits on photographs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from .data import SIZE, DigitsOnPhotographs

CONFIG = ViTConfig(
    hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256, image_size=SIZE, patch_size=8
)
MEAN = STD = 0.5
BATCH, LEARNING_RATE = 32, 1e-3
OUTLINE_WEIGHT = 3.0  # of the outlines' loss beside the labels'
PLAIN_SHARE = 0.4  # of the steps, the first, in which photographs fade in over their mean colour


class LabelsAndOutlines(nn.Module):
    """A ViT with two linear heads: the class from the mean of its patch tokens, the outline from each of them."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, 10)
        self.outliner = nn.Linear(config.hidden_size, config.patch_size**2)

    def forward(self, images: Tensor, labels: Tensor, outlines: Tensor) -> Tensor:
        """The loss, scalar.

        Args:
            images: (B, 3, H, W) in [0, 1].
            labels: (B,) long.
            outlines: (B, 1, H, W) in [0, 1].
        """
        pixel_values = (images - MEAN) / STD
        tokens = self.vit(pixel_values).last_hidden_state[:, 1:]
        patches = F.unfold(outlines, self.vit.config.patch_size, stride=self.vit.config.patch_size).mT
        outline_loss = F.binary_cross_entropy_with_logits(self.outliner(tokens), patches)
        return F.cross_entropy(self.classifier(tokens.mean(1)), labels) + OUTLINE_WEIGHT * outline_loss


def train_teacher(part: DigitsOnPhotographs, steps: int, seed: int, folder: Path) -> None:
    """Train the ViT on ever new compositions of the labelled digits, and save it with its image processor.

    Args:
        part: the labelled digits.
        steps: of `BATCH` images.
        seed: of weights and images.
        folder: where the stock checkpoint goes.
    """
    torch.manual_seed(seed)
    model = LabelsAndOutlines(CONFIG).train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for batch in compositions(part, steps, seed):
        optimizer.zero_grad()
        model(*batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.vit.save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    ViTImageProcessorPil(size=size, image_mean=[MEAN] * 3, image_std=[STD] * 3).save_pretrained(folder)


def compositions(part: DigitsOnPhotographs, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of images, labels and outlines, with a progress bar."""
    generator = torch.Generator().manual_seed(seed)
    with tqdm(total=steps, dynamic_ncols=True) as bar:
        for step in range(steps):
            rows = torch.randint(len(part.labels), (BATCH,), generator=generator)
            images, outlines = part.compose(rows, generator, min(1.0, step / (PLAIN_SHARE * steps)))
            yield images, part.labels[rows], outlines
            bar.set_postfix_str(f"{(bar.format_dict['rate'] or 0) * BATCH:.3g} images/s", refresh=False)
            bar.update()
