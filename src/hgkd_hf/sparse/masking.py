"""Which cells of a batch of images are visible, and how tensors move between maps and visible cells.

An image is cut into a grid of square cells (side = the encoder's total stride, or a multiple). A mask hides whole
cells; `VisibleCells` numbers the visible ones of a batch, one *row* each, image by image and row-major inside an
image. Throughout, `bool_masked_pos` follows transformers: True means hidden.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# What the entries of an index table read along one axis of the grid, for any cell: (how many cells further on, which
# position there), None: nothing.
Axis = tuple[tuple[int, int] | None, ...]


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
        visible_per_image: the number of every image's visible cells, where it is known. Rows are then numbered
            without asking the mask for their number, for which an accelerator would have to be waited for.

    Attributes:
        image_index: (V,) long, the image of each row.
        cell_index: (V,) long, the row-major cell of each row inside its image.

    Raises:
        ValueError: the mask has another shape or type, hides a whole image, or does not leave `visible_per_image`
            cells in each (RuntimeError, and later, on an accelerator).
    """

    def __init__(self, bool_masked_pos: Tensor, visible_per_image: int | None = None):
        if bool_masked_pos.dim() != 3 or bool_masked_pos.dtype != torch.bool:
            raise ValueError(
                f"bool_masked_pos must be a bool tensor (batch, grid rows, grid columns), "
                f"but it is {bool_masked_pos.dtype} of shape {tuple(bool_masked_pos.shape)}."
            )
        self.bool_masked_pos = bool_masked_pos
        self.batch_size = bool_masked_pos.shape[0]
        self.grid = tuple(bool_masked_pos.shape[1:])
        if visible_per_image is None:
            if not self._visible.any(1).all():
                raise ValueError("bool_masked_pos hides every cell of an image: leave at least one cell visible.")
            self.image_index, self.cell_index = self._visible.nonzero(as_tuple=True)
        else:
            self._check_counts(visible_per_image)
            order = bool_masked_pos.flatten(1).byte().argsort(dim=1, stable=True)
            self.cell_index = order[:, :visible_per_image].flatten()
            rows = torch.arange(self.batch_size * visible_per_image, device=self.device)
            self.image_index = rows // visible_per_image

    def _check_counts(self, visible_per_image: int) -> None:
        message = f"bool_masked_pos does not leave visible_per_image={visible_per_image} cells of every image visible."
        if self.device.type != "cpu":
            torch._assert_async((self.cells_per_image == visible_per_image).all(), message)
        elif self.cells_per_image.tolist() != [visible_per_image] * self.batch_size:
            raise ValueError(message)

    @cached_property
    def _visible(self) -> Tensor:
        """(B, gh*gw) bool."""
        return ~self.bool_masked_pos.flatten(1)

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
        return self._visible.sum(1)

    @cached_property
    def row_of_cell(self) -> Tensor:
        """(B, gh, gw) long, the inverse of the index tables: each cell's row, or -1 where it is hidden."""
        rows = self._visible.flatten().cumsum(0).view(self.bool_masked_pos.shape) - 1
        return rows.masked_fill(self.bool_masked_pos, -1)

    @cached_property
    def _position(self) -> Tensor:
        """(V,) long: the cell of each row, counted through the batch."""
        return self.image_index * (self.grid[0] * self.grid[1]) + self.cell_index

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
        rows = rows.index_select(0, self._position)
        return rows.permute(0, 3, 1, 2)

    def scatter(self, rows: Tensor) -> Tensor:
        """Put rows (V, C, bh, bw) back on maps (B, C, gh*bh, gw*bw), channels last, zeros at hidden cells."""
        count, channels, bh, bw = rows.shape
        if count != len(self):
            raise ValueError(f"{count} rows were given for {len(self)} visible cells.")
        gh, gw = self.grid
        blocks = rows.new_zeros(self.batch_size * gh * gw, bh, bw, channels)
        blocks = blocks.index_copy(0, self._position, rows.permute(0, 2, 3, 1))
        maps = blocks.view(self.batch_size, gh, gw, bh, bw, channels).transpose(2, 3)
        return maps.reshape(self.batch_size, gh * bh, gw * bw, channels).permute(0, 3, 1, 2)

    def index_table(
        self,
        vertical: Axis,
        horizontal: Axis,
        size: int,
        taps: tuple[int, int] = (1, 1),
        outside_apart: bool = False,
    ) -> Tensor:
        """Where every visible cell reads, in the flattened rows of a feature with `size` entries a cell.

        What is read is the sum of what the axes say. Along an axis its positions follow each other, each with `taps`
        entries; the table has the taps of both axes last.

        Returns:
            (V * positions, taps) int32, below V * size; V * size where nothing is read or what is hidden, and, with
            `outside_apart`, one more where nothing.
        """
        cell, place, outside = _cells_read(self.grid, vertical, horizontal, taps, self.device)
        row = self._rows_of_image.gather(1, cell.index_select(0, self.cell_index))
        none = len(self) * size
        index = torch.add(place, row, alpha=size).clamp_(max=none)
        if outside_apart:
            index.masked_fill_(outside.index_select(0, self.cell_index), none + 1)
        return index.view(-1, taps[0] * taps[1])

    @cached_property
    def _rows_of_image(self) -> Tensor:
        """(V, gh*gw + 1) int32: the rows of each row's image by cell, V where it is hidden, and V for the outside."""
        rows = self.row_of_cell.int().masked_fill_(self.bool_masked_pos, len(self)).flatten(1)
        return F.pad(rows, (0, 1), value=len(self)).index_select(0, self.image_index)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _cells_read(
    grid: tuple[int, int], vertical: Axis, horizontal: Axis, taps: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """What does not depend on the mask in an index table, made once for all masks.

    Returns:
        cell: (gh*gw, entries) long, the cell that each cell reads, gh*gw where there is none.
        place: (entries,) int32, where in it.
        outside: (gh*gw, entries) bool, where there is none.
    """
    reads = []
    for axis, cells in ((vertical, grid[0]), (horizontal, grid[1])):
        step = torch.tensor([0 if read is None else read[0] for read in axis])
        place = torch.tensor([0 if read is None else read[1] for read in axis], dtype=torch.int32)
        something = torch.tensor([read is not None for read in axis])
        to = torch.arange(cells)[:, None] + step
        reads.append((to, place, something & (to >= 0) & (to < cells)))
    (row, down, inside_y), (column, right, inside_x) = reads

    def outer(y: Tensor, x: Tensor) -> Tensor:
        """(m, vertical entries) and (n, horizontal entries) to their sum (m * n, entries), taps last."""
        table = y[:, None, :, None] + x[None, :, None, :]
        table = table.unflatten(3, (-1, taps[1])).unflatten(2, (-1, taps[0])).transpose(3, 4)
        return table.reshape(len(y) * len(x), -1)

    outside = outer(~inside_y, ~inside_x)
    cell = outer(row * grid[1], column).masked_fill_(outside, grid[0] * grid[1])
    place = outer(down[None], right[None])[0]
    return cell.to(device), place.to(device), outside.to(device)
