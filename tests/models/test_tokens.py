import pytest
import torch
from typecheck import unchecked

from polyspace.models.spaces.tokens import resample_tokens


def ramp(grid):
    """Tokens that hold the coordinates of their own centres, in shares of the clip."""
    axes = [(torch.arange(n) + 0.5) / n for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)[None]


def test_the_same_grid_is_left_alone():
    x = torch.randn(2, 24, 5)
    assert resample_tokens(x, (2, 3, 4), (2, 3, 4)) is x


def test_a_coarser_grid_takes_means():
    x = torch.randn(1, 8 * 4 * 4, 3)
    y = resample_tokens(x, (8, 4, 4), (4, 2, 4)).view(4, 2, 4, 3)
    assert torch.allclose(y[1, 1, 2], x.view(8, 4, 4, 3)[2:4, 2:4, 2].mean((0, 1)))


@pytest.mark.parametrize(("grid", "wanted"), [((8, 16, 16), (16, 14, 14)), ((4, 6, 6), (8, 12, 6))])
def test_linear_content_stays_where_it_is_away_from_the_rim(grid, wanted):
    """Coordinates come out as the coordinates of the new centres: nothing is shifted or turned around."""
    y, want = resample_tokens(ramp(grid), grid, wanted).view(*wanted, 3), ramp(wanted).view(*wanted, 3)
    inner = tuple(slice(n // 4, n - n // 4) for n in wanted)
    assert (y[inner] - want[inner]).abs().max() < 0.04


def test_tokens_that_do_not_fill_their_grid_are_refused():
    with pytest.raises(ValueError, match="do not fill"):
        unchecked(resample_tokens)(torch.randn(1, 7, 2), (2, 2, 2), (1, 1, 1))
