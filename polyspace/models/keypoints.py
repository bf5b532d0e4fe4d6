"""Where the things are that actions move: keypoints of a frame's latents, found without labels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ActionKeypoints(nn.Module):
    """Latents of a frame (…,N,D) -> a place (…,A) in the space of the actions: what one frame's place is ahead of
    another's by is the sum of the actions between them.

    Each of K keypoints is the softmax-weighted mean of what every cell says: its own row and column plus an offset. A
    linear map takes them to the action's dims. Trained by `travel_loss` alone, over several steps: what actions move
    goes far in that time, what moves by itself or stands still can't tell their sum, and a linear map leaves the
    distance of two places as long as the way between them, which is what a planner needs. The energy of the grid says
    nothing of how far two things are apart that don't overlap.

    Sources: spatial softmax of Finn et al. 2016 (arXiv:1509.06113); inverse dynamics of Agrawal et al. 2016
    (arXiv:1606.07419), with sums over several steps in place of single actions.
    """

    def __init__(self, dim: int, action_dim: int, keypoints: int = 4, width: int = 64) -> None:
        super().__init__()
        self.keypoints = keypoints
        self.cell = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, 3 * keypoints))
        self.into_actions = nn.Linear(2 * keypoints, action_dim, bias=False)

    def points(self, latents: Float[Tensor, "*B N D"], places: Float[Tensor, "N 3"]) -> Float[Tensor, "*B K 2"]:
        """Row and column of each keypoint, in cells."""
        said = self.cell(latents).unflatten(-1, (self.keypoints, 3))
        weight = said[..., :1].softmax(-3)
        return (weight * (places[:, None, 1:] + said[..., 1:])).sum(-3)

    def forward(self, latents: Float[Tensor, "*B N D"], places: Float[Tensor, "N 3"]) -> Float[Tensor, "*B A"]:
        """`places`: (0, row, column) of the cells."""
        return self.into_actions(self.points(latents, places).flatten(-2))


def travel_loss(
    first: Float[Tensor, "*B A"], later: Float[Tensor, "*B A"], travel: Float[Tensor, "*B A"]
) -> Float[Tensor, ""]:
    """Mean |later − first − travel|; `travel` is the sum of the actions between, in standard deviations of an action.

    Absolute: walls and blocks that stop a motion make few large errors.
    """
    return F.l1_loss(later - first, travel)


def explained_travel(
    first: Float[Tensor, "B A"], later: Float[Tensor, "B A"], travel: Float[Tensor, "B A"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " A"]]:
    """Share of the squared travel that the places tell, of all dims together and of each (nan where there is none); 0
    for places that never change."""
    rest, whole = (later - first - travel).square().sum(0), travel.square().sum(0)
    return 1 - rest.sum() / whole.sum().clamp_min(1e-9), 1 - rest / torch.where(whole > 0, whole, torch.nan)
