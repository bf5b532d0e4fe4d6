"""Latent prediction for transformers' V-JEPA 2 encoder: what comes next, as an average of the encoder itself knows it.

transformers' own class encodes all tokens and masks afterwards, so that hidden content leaks into visible tokens; here
its layers run on the visible ones only.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polyspace.data.batch import VideoBatch
from polyspace.data.sampling import stride_indices
from polyspace.losses.energy import Kind, energy_loss
from polyspace.losses.vicreg import covariance_term, position_covariance, variance_term
from polyspace.models.ema import Ema
from polyspace.models.hnet.encoder import cell_coords, pack_visible, take_rows
from polyspace.models.layers import Mlp
from polyspace.models.vjepa.predictor import Predictor
from polyspace.train.embedded.clips import FRAMES
from polyspace.train.embedded.phases import CHUNK, WIDTH, EmbeddedPhase, small_model
from polyspace.train.embedded.scores import turn_scores
from polyspace.train.phase import StepOutput
from polyspace.train.vjepa.masking import MaskPlan, Masks
from polyspace.train.vjepa.questions import without_still

ENERGY: Kind = "l2"  # under l1 the best answer is the ground until a hit is likelier than not
SPREAD = 4.0  # places count in quarter cells: on 3×3 cells the code of whole ones hardly tells neighbours apart


class LatentPhase(EmbeddedPhase):
    """loss = energy of the prediction of the next two time steps + variance and covariance terms.

    Online encoder on what is visible (the past on most updates, space tubes else), EMA encoder on everything, our
    Predictor between. Goals are the mean of the target's layers, each normalised without affine, with half of each
    place's mean over time taken off: of whole goals still ground is nearly all, without any of it no update is easy
    enough to learn the first thing from.
    """

    def __init__(self, future_share: float = 0.9, decay: float = 0.99, seed: int = 0) -> None:
        model = small_model("vjepa2")
        model.predictor = nn.Identity()  # ours predicts; the class's own would be saved untrained
        super().__init__("vjepa2", model)
        self.predictor, self.expander = Predictor(WIDTH, WIDTH, 2, 4), Mlp(WIDTH, 2 * WIDTH)
        self.target: Ema[Any] = Ema(model.encoder)
        self.masks, self.decay, self.seed = MaskPlan(future_share, tube_ratios=(0.6,), block_scale=0.0), decay, seed

    def forward(self, batch: VideoBatch) -> StepOutput:
        assert batch.video is not None
        masks = self.masks.draw(self.backbone.grid, self.seed, batch.place[0], batch.indices)
        seen, online, guess, goal = self.predict(batch.video, masks, self.goals(batch.video))
        energy = energy_loss(guess, goal, kind=ENERGY)
        cells = self.expander(online)
        visible = ~masks.hidden.flatten(1)
        grid = cells.new_zeros(*visible.shape, WIDTH).scatter(1, seen[..., None].expand_as(cells), cells)
        covariance = position_covariance(grid, visible)
        terms = {"energy": energy, "variance": variance_term(covariance), "covariance": covariance_term(covariance)}
        loss = energy + 0.5 * terms["variance"] + 0.02 * terms["covariance"]
        return StepOutput(loss, {name: value.detach() for name, value in terms.items()})

    @torch.no_grad()
    def goals(self, video: Tensor) -> Float[Tensor, "B N D"]:
        """What the target says of every cell: the mean of its input and all layers (data2vec, arXiv 2202.03555)."""
        every = encode(self.target.model, video)[0]
        known = torch.stack([F.layer_norm(x, (WIDTH,)) for x in every]).mean(0)
        return without_still(known, self.backbone.grid[0], 0.5)

    def predict(self, video: Tensor, masks: Masks, goals: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(visible cells, online tokens there, predictions, goals) of the cells asked for."""
        seen, asked = (pack_visible(mask.flatten(1))[0] for mask in (masks.hidden, ~masks.asked))
        online = encode(self.model.encoder, video, seen)[1]
        grid = self.backbone.grid
        guess = self.predictor(online, SPREAD * cell_coords(seen, grid), None, SPREAD * cell_coords(asked, grid))
        return seen, online, guess, at(goals, masks.asked)

    def frames(self, generator: torch.Generator) -> list[int]:
        """A random window at a random rate, from every frame to the whole clip: what is slow can be foreseen first."""
        count = self.plan.frames
        stride = 1 + (FRAMES / count - 1) * torch.rand((), generator=generator).item() ** 2
        return stride_indices(FRAMES, count, stride, generator=generator)

    def after_update(self, step: int) -> None:
        self.target.update(self.model.encoder, self.decay)

    def evaluate(self, step: int) -> dict[str, Any]:
        assert self.held_out.video is not None and self.held_out.features is not None
        pooled = torch.cat([self.backbone(part).pooled for part in self.held_out.video.split(CHUNK)])
        turns = self.held_out.features["turns"]
        return {"skill": self.skill(self.held_out.video[: 2 * CHUNK])} | turn_scores(pooled, turns)

    def skill(self, video: Tensor) -> float:
        """1 − energy / energy of the best constant of each cell (the clips' mean), over all lengths of the past."""
        goals, (t, h, w) = self.goals(video), self.backbone.grid
        constant = goals.mean(0, keepdim=True).expand_as(goals)
        step = torch.arange(t)[None, :, None, None].expand(len(video), t, h, w)
        ours, theirs = [], []
        for past in range(1, t):
            masks = Masks(step >= past, (step >= past) & (step < past + self.masks.horizon), "future")
            _, _, guess, goal = self.predict(video, masks, goals)
            ours.append(energy_loss(guess, goal, kind=ENERGY))
            theirs.append(energy_loss(at(constant, masks.asked), goal, kind=ENERGY))
        return 1 - (torch.stack(ours).sum() / torch.stack(theirs).sum()).item()


def at(x: Float[Tensor, "B N D"], asked: Bool[Tensor, "B t h w"]) -> Float[Tensor, "B Q D"]:
    """The rows of the cells asked for, as many in every clip."""
    return take_rows(x, pack_visible(~asked.flatten(1))[0])


def encode(
    encoder: Any, video: Float[Tensor, "B T H W 3"], index: Int[Tensor, "B V"] | None = None
) -> tuple[list[Tensor], Float[Tensor, "B V D"]]:
    """(input and output of every layer, output after the final norm) of VJEPA2Encoder on the tokens at `index` only."""
    x = encoder.embeddings(video.permute(0, 1, 4, 2, 3))  # (B,T,H,W,C) -> (B,T,C,H,W) -> (B,N,D)
    if index is not None:
        x = take_rows(x, index)
    every = [x]
    for layer in encoder.layer:
        x = layer(x, position_mask=index)[0]
        every.append(x)
    return every, encoder.layernorm(x)
