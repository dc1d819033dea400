import pytest
import torch

from hgkd_hf.sparse.masking import VisibleCells, cell_grid, expand_mask, num_visible_cells, random_cell_mask
from hgkd_hf.sparse.windows import reading


@pytest.mark.parametrize(
    ("grid", "ratio", "visible"), [((7, 7), 0.6, 20), ((12, 12), 0.75, 36), ((4, 4), 0.0, 16), ((3, 2), 0.8, 1)]
)
def test_exact_count(grid, ratio, visible):
    assert num_visible_cells(grid, ratio) == visible
    for seed in range(5):
        mask = random_cell_mask(grid, ratio, torch.Generator().manual_seed(seed))
        assert mask.shape == grid
        assert (~mask).sum() == visible


def test_mask_is_a_function_of_its_seed_and_uniform():
    draw = [random_cell_mask((4, 4), 0.5, torch.Generator().manual_seed(s)) for s in range(2000)]
    assert torch.equal(draw[3], random_cell_mask((4, 4), 0.5, torch.Generator().manual_seed(3)))
    share = torch.stack(draw).float().mean(0)  # 2,000 draws: three standard deviations are 0.034
    assert ((share - 0.5).abs() < 0.045).all()


@pytest.mark.parametrize("ratio", [1, 1.0, -0.1, 1.5])
def test_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match=f"mask_ratio is {ratio}"):
        num_visible_cells((7, 7), ratio)


def test_ratio_that_leaves_nothing():
    with pytest.raises(ValueError, match="leaves none of the 2x2 cells visible: lower mask_ratio to 0.750"):
        num_visible_cells((2, 2), 0.9)


def test_cell_grid():
    assert cell_grid(224, 32) == (7, 7)
    assert cell_grid((64, 96), 32) == (2, 3)
    with pytest.raises(ValueError, match="image_size 200 is not a multiple of the 32-pixel mask cells.* 192 or 224"):
        cell_grid(200, 32)
    with pytest.raises(ValueError, match="set image_size to 32"):
        cell_grid(16, 32)


def draw(batch=3, grid=(3, 4), ratio=0.5):
    return torch.stack([random_cell_mask(grid, ratio, torch.Generator().manual_seed(i)) for i in range(batch)])


def test_gather_scatter():
    cells = VisibleCells(draw())
    maps = torch.randn(3, 5, 6, 16)
    rows = cells.gather(maps)
    assert rows.shape == (len(cells), 5, 2, 4)
    row = 4
    image, cell = cells.image_index[row], cells.cell_index[row]
    y, x = divmod(cell.item(), 4)
    assert torch.equal(rows[row], maps[image, :, 2 * y : 2 * y + 2, 4 * x : 4 * x + 4])
    assert torch.equal(cells.scatter(rows), maps * cells.visible((6, 16)))


def test_gradients_of_gather_and_scatter():
    cells = VisibleCells(draw(2, (2, 2), 0.5))
    maps = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: cells.scatter(cells.gather(m)), maps)


def test_expand_mask():
    mask = torch.tensor([[[True, False]]])
    assert expand_mask(mask, (2, 4)).tolist() == [[[True, True, False, False]] * 2]
    with pytest.raises(ValueError, match="2x3 grid cannot be aligned with 1x2 mask cells"):
        expand_mask(mask, (2, 3))


def test_index_table_against_a_padded_map():
    """The window of every cell equals the cut-out of the padded map of positions, hidden ones apart."""
    cells = VisibleCells(draw(2, (3, 3), 0.4))
    block = 2
    none = len(cells) * block * block
    position = torch.arange(none).view(len(cells), 1, block, block)
    maps = cells.scatter(position + 1)[:, 0]  # 0 = hidden
    padded = torch.nn.functional.pad(maps, (3, 3, 3, 3), value=-1)  # -1 = outside
    axes = reading(range(-3, 1), block, block), reading(range(-1, 4), block)
    index = cells.index_table(*axes, block * block, outside_apart=True).view(-1, 4, 5)
    for row in range(len(cells)):
        y, x = divmod(cells.cell_index[row].item(), 3)
        top, left = y * block, x * block + 2
        window = padded[cells.image_index[row], top : top + 4, left : left + 5]
        absent = torch.where(window == 0, none, none + 1)
        assert torch.equal(index[row].long(), torch.where(window > 0, window - 1, absent))


def test_strided_index_table():
    cells = VisibleCells(draw(1, (2, 2), 0.0))
    every, second = (
        cells.index_table(reading(steps, 4, 4), reading(steps, 4), 16).view(-1, len(steps), len(steps))
        for steps in (range(4), range(0, 4, 2))
    )
    assert torch.equal(second, every[:, ::2, ::2])


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (torch.ones(2, 3, 3, dtype=torch.bool), "hides every cell"),
        (torch.zeros(2, 9, dtype=torch.bool), r"shape \(2, 9\)"),
        (torch.zeros(2, 3, 3), "torch.float32"),
    ],
)
def test_bad_masks(mask, match):
    with pytest.raises(ValueError, match=match):
        VisibleCells(mask)


def test_rows_of_another_mask():
    with pytest.raises(ValueError, match="3 rows were given for"):
        VisibleCells(draw()).scatter(torch.zeros(3, 1, 2, 2))
