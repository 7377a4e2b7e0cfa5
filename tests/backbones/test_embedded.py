"""The weights that come with the package."""

import hashlib
from pathlib import Path

import pytest
import torch

from figureground.backbones import find, own
from figureground.backbones.vit import define
from figureground.backbones.weights import fill
from figureground.errors import WeightsError
from figureground.proposals.learned_figure import HEAD, LearnedFigure


def test_the_weights_are_those_of_the_catalogue_and_small() -> None:
    row = find("embedded")
    content = Path(str(row.file)).read_bytes()
    assert hashlib.sha256(content).hexdigest() == row.sha256
    assert len(content) < 24 * 2**20
    shape = own.read(Path(str(row.file))).shape
    assert (shape.patch_size, shape.width, shape.heads) == (row.patch_size, row.width, row.heads)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    row = find("embedded")
    content = bytearray(Path(str(row.file)).read_bytes())
    content[-1] ^= 1
    (tmp_path / own.FILE).write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        fill(define(row), row, tmp_path / own.FILE)


def disc(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 3.5) ** 2
    texture = 0.1 * torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    figure, ground = torch.tensor([0.7, 0.3, 0.2]), torch.tensor([0.4, 0.5, 0.4])
    return texture + torch.where(inside, figure[:, None, None], ground[:, None, None]), inside


def test_it_knows_figure_from_ground() -> None:
    image, inside = disc(240, 320)
    [figure] = LearnedFigure("embedded")(image[None])
    coarse = torch.nn.functional.adaptive_avg_pool2d(inside[None].float(), tuple(figure.shape))[0]
    assert float(figure[coarse > 0.9].mean()) > 0.6
    assert float(figure[coarse < 0.1].mean()) < 0.3


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    for name in (own.FILE, HEAD):
        (tmp_path / name).write_bytes((own.EMBEDDED / name).read_bytes())
    with pytest.raises(WeightsError, match="learned on other features"):  # a copy has another name than its head knows
        LearnedFigure(str(tmp_path))
    with pytest.raises(WeightsError, match="no backbone with a head"):
        LearnedFigure(str(tmp_path / "nowhere"))
