"""Which cells of a batch of images are visible, and how tensors move between maps and visible cells.

An image is cut into a grid of square cells (side = the encoder's total stride, or a multiple). A mask hides whole
cells; `VisibleCells` numbers the visible ones of a batch, one *row* each, image by image and row-major inside an
image. Throughout, `bool_masked_pos` follows transformers: True means hidden.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


def num_visible_cells(grid: tuple[int, int], mask_ratio: float) -> int:
    """Number of cells of `grid` that stay visible: `round(cells * (1 - mask_ratio))`, as in SparK (2301.03580, 3.1).

    Raises:
        ValueError: `mask_ratio` is outside [0, 1), or leaves no visible cell.
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio is {mask_ratio}, but it must be at least 0 and below 1: choose e.g. 0.6.")
    cells = grid[0] * grid[1]
    visible = round(cells * (1 - mask_ratio))
    if visible == 0:
        raise ValueError(
            f"mask_ratio {mask_ratio} leaves none of the {grid[0]}x{grid[1]} cells visible: "
            f"lower mask_ratio to {1 - 1 / cells:.3f} or less, or raise image_size."
        )
    return visible


def cell_grid(image_size: int | tuple[int, int], cell_size: int) -> tuple[int, int]:
    """The grid (rows, columns) of cells of `cell_size` pixels in an image of `image_size` pixels (side, or (H, W)).

    Raises:
        ValueError: the cells do not divide the image; the message names the nearest sizes that work.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for size in (height, width):
        if size % cell_size or size < cell_size:
            below, above = size // cell_size * cell_size, (size // cell_size + 1) * cell_size
            nearest = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"image_size {size} is not a multiple of the {cell_size}-pixel mask cells: "
                f"set image_size to {nearest}."
            )
    return height // cell_size, width // cell_size


def random_cell_mask(grid: tuple[int, int], mask_ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw one image's mask: (gh, gw) bool, True = hidden, with exactly `num_visible_cells` cells visible."""
    visible = num_visible_cells(grid, mask_ratio)
    order = torch.randperm(grid[0] * grid[1], generator=generator)
    mask = torch.ones(grid[0] * grid[1], dtype=torch.bool)
    mask[order[:visible]] = False
    return mask.view(grid)


def expand_mask(bool_masked_pos: Tensor, size: tuple[int, int]) -> Tensor:
    """Repeat a cell mask (B, gh, gw) to a finer grid (B, H, W): a feature map's, the image's or a teacher's tokens.

    Raises:
        ValueError: `size` is not a multiple of the cell grid.
    """
    gh, gw = bool_masked_pos.shape[-2:]
    height, width = size
    if height % gh or width % gw:
        raise ValueError(
            f"a {height}x{width} grid cannot be aligned with {gh}x{gw} mask cells: "
            f"each side must be a multiple of the cells' number; change image_size (student or teacher) or cell_size."
        )
    return bool_masked_pos.repeat_interleave(height // gh, -2).repeat_interleave(width // gw, -1)


class VisibleCells:
    """The visible cells of a batch, and the maps <-> rows conversions.

    Args:
        bool_masked_pos: (B, gh, gw) bool, True = hidden. Images may differ in their number of visible cells.

    Attributes:
        image_index: (V,) long, the image of each row.
        cell_index: (V,) long, the row-major cell of each row inside its image.
        row_of_cell: (B, gh, gw) long, the inverse: each cell's row, or -1 where it is hidden.

    Raises:
        ValueError: the mask has another shape or type, or hides a whole image.
    """

    def __init__(self, bool_masked_pos: Tensor):
        if bool_masked_pos.dim() != 3 or bool_masked_pos.dtype != torch.bool:
            raise ValueError(
                f"bool_masked_pos must be a bool tensor (batch, grid rows, grid columns), "
                f"but it is {bool_masked_pos.dtype} of shape {tuple(bool_masked_pos.shape)}."
            )
        visible = ~bool_masked_pos.flatten(1)
        if not visible.any(1).all():
            raise ValueError("bool_masked_pos hides every cell of an image: leave at least one cell visible.")
        self.bool_masked_pos = bool_masked_pos
        self.batch_size = bool_masked_pos.shape[0]
        self.grid = tuple(bool_masked_pos.shape[1:])
        self.image_index, self.cell_index = visible.nonzero(as_tuple=True)
        rows = torch.arange(len(self.image_index), device=visible.device)
        row_of_cell = torch.full(visible.shape, -1, device=visible.device)
        row_of_cell[self.image_index, self.cell_index] = rows
        self.row_of_cell = row_of_cell.view(bool_masked_pos.shape)

    def __len__(self) -> int:
        """The number of visible cells V in the batch."""
        return self.image_index.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the index tables live."""
        return self.bool_masked_pos.device

    @cached_property
    def cells_per_image(self) -> Tensor:
        """(B,) long: how many cells of each image are visible."""
        return torch.bincount(self.image_index, minlength=self.batch_size)

    def visible(self, size: tuple[int, int]) -> Tensor:
        """The visible positions of a feature grid `size`: (B, 1, H, W) bool."""
        return ~expand_mask(self.bool_masked_pos, size).unsqueeze(1)

    def gather(self, maps: Tensor) -> Tensor:
        """Cut maps (B, C, H, W) into the rows of their visible cells, (V, C, H/gh, W/gw), channels last."""
        batch, channels, height, width = maps.shape
        gh, gw = self.grid
        if height % gh or width % gw:
            raise ValueError(f"a {height}x{width} map cannot be cut into {gh}x{gw} cells.")
        blocks = maps.permute(0, 2, 3, 1).reshape(batch, gh, height // gh, gw, width // gw, channels).transpose(2, 3)
        rows = blocks.reshape(batch * gh * gw, height // gh, width // gw, channels)
        rows = rows.index_select(0, self.image_index * (gh * gw) + self.cell_index)
        return rows.permute(0, 3, 1, 2)

    def scatter(self, rows: Tensor) -> Tensor:
        """Put rows (V, C, bh, bw) back on maps (B, C, gh*bh, gw*bw), channels last, zeros at hidden cells."""
        count, channels, bh, bw = rows.shape
        if count != len(self):
            raise ValueError(f"{count} rows were given for {len(self)} visible cells.")
        gh, gw = self.grid
        blocks = rows.new_zeros(self.batch_size * gh * gw, bh, bw, channels)
        index = self.image_index * (gh * gw) + self.cell_index
        blocks = blocks.index_copy(0, index, rows.permute(0, 2, 3, 1))
        maps = blocks.view(self.batch_size, gh, gw, bh, bw, channels).transpose(2, 3)
        return maps.reshape(self.batch_size, gh * bh, gw * bw, channels).permute(0, 3, 1, 2)

    def neighbours(
        self,
        block: tuple[int, int],
        top: int,
        left: int,
        size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
    ) -> tuple[Tensor, Tensor]:
        """Where the pixels of a window around every visible cell's block lie.

        Feature maps of these cells have blocks of `block` pixels. The window of a cell starts `top` rows above and
        `left` columns before its block and is `size` (rows, columns) long, counted in steps of `stride` pixels.

        Returns:
            index: (V, rows, columns) long, positions in the flattened rows (V * bh * bw), 0 where there is none.
            state: (V, rows, columns) int8: 0 = visible, 1 = in a hidden cell, 2 = outside the image.
        """
        (bh, bw), (gh, gw) = block, self.grid

        def axis(cell: Tensor, block_length: int, cells: int, before: int, length: int, step: int):
            steps = torch.arange(length, device=self.device) * step - before
            position = cell[:, None] * block_length + steps
            inside = (position >= 0) & (position < cells * block_length)
            position = position.clamp(0, cells * block_length - 1)
            return position // block_length, position % block_length, inside

        cell_y, y, inside_y = axis(self.cell_index // gw, bh, gh, top, size[0], stride[0])
        cell_x, x, inside_x = axis(self.cell_index % gw, bw, gw, left, size[1], stride[1])
        row = self.row_of_cell[self.image_index[:, None, None], cell_y[:, :, None], cell_x[:, None, :]]
        inside = inside_y[:, :, None] & inside_x[:, None, :]
        state = torch.where(inside, (row < 0).to(torch.int8), 2).to(torch.int8)
        index = (row * bh + y[:, :, None]) * bw + x[:, None, :]
        return index.where(state == 0, 0), state
