"""One step of V-JEPA: predict the latents of hidden content, for chunk encoders and the tubelet baseline alike."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polyspace.data.batch import VideoBatch
from polyspace.losses.auxiliaries import boundary_loss, entropy_loss, ratio_loss
from polyspace.losses.energy import Kind, energy_loss
from polyspace.losses.vicreg import covariance_term, position_covariance, variance_term
from polyspace.losses.vicregl import VICRegLLoss
from polyspace.models.ema import Ema
from polyspace.models.hnet.dechunker import to_grid
from polyspace.models.hnet.encoder import grid_of
from polyspace.models.layers import Mlp
from polyspace.models.vjepa.encoded import Encoded
from polyspace.models.vjepa.predictor import Predictor
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.train.optim import cosine_schedule
from polyspace.train.phase import Phase, StepOutput
from polyspace.train.vjepa.masking import MaskPlan, Masks
from polyspace.train.vjepa.questions import Questions, chunk_questions, chunks_by_column, grid_goals, grid_questions
from polyspace.train.vjepa.watch import Watch
from polyspace.utils.monitor import collapse_alarm


@dataclass(frozen=True)
class Weights:
    """Weights of the terms beside the energy of hidden content, which has weight 1; 0 leaves a term out.

    context: visible cells are predicted too, each by 1/√(distance to the hidden part). variance, covariance: VICReg on
    expanded grid features, centred per position. vicregl: two views of a clip, by both kinds of mask (a second
    forward). ratio: one boundary in `cells_per_chunk` cells that have one before them. entropy, boundary: sure
    assignments and decisions.
    """

    context: float = 0.0
    variance: float = 0.0
    covariance: float = 0.0
    vicregl: float = 0.0
    ratio: float = 0.03
    entropy: float = 0.0
    boundary: float = 0.0
    cells_per_chunk: float = 5.0


@dataclass(frozen=True)
class JepaSettings:
    """What the step needs to know beside its modules.

    target_layers: the target's latents are the mean of so many last layers (see ViT). chunk_weight_until: a hidden
    cell weighs (1/size of its chunk)^α, and α falls from 1 to 0 over this share of the run (no difference for
    tubelets). At first what stands still for long then doesn't outweigh what moves, and motion is learned sooner. But
    what is hit counts more than what isn't, and "something passes here" becomes a good answer whenever and whichever
    way it passes: with such weights to the end, direction is lost again. still: share of each place's mean over time
    that is taken off the targets (`without_still`). ema: decay at the first and the last step. budgets: range of the
    share of visible cells that is the budget on `budget_share` of the steps. region_share: share of steps on which the
    online encoder joins places to regions. But for these and for budgets, runs of single places are not merged in
    pretraining, neither online nor in the target, whatever the encoder does in use. context_ramp: shares of the run
    between which the context loss comes in.
    """

    total_steps: int
    seed: int = 0
    masks: MaskPlan = field(default_factory=MaskPlan)
    weights: Weights = field(default_factory=Weights)
    target: Literal["grid", "chunk"] = "grid"
    target_layers: int = 1
    chunk_weight_until: float = 0.6
    energy: Kind = "l1"
    still: float = 0.0
    ema: tuple[float, float] = (0.99, 0.99)
    ema_broadcast: bool = False
    budgets: tuple[float, float] | None = None
    budget_share: float = 0.5
    region_share: float = 0.0
    context_ramp: tuple[float, float] = (0.05, 0.15)
    monitor_every: int = 10


class JepaPhase(Phase):
    """Online encoder on what is visible, predictor from it to what is asked for, EMA encoder on everything as target.

    loss = E(prediction, LN(target)) on asked cells + Σ weight·term (`Weights`). Targets are the EMA encoder's latents
    on the content-free grid (chunks handed back to their cells), normalised without affine; with target "chunk" they
    are whole EMA chunks that are hidden altogether, asked for by centroid and size; space tubes are then drawn around
    chunks, and masks, like questions, say where hidden chunks lie.
    """

    def __init__(self, encoder: HNetViT | TubeletViT, predictor: Predictor, settings: JepaSettings) -> None:
        super().__init__()
        if settings.target == "chunk" and isinstance(encoder, TubeletViT):
            raise ValueError("target 'chunk' needs a chunk encoder; tubelets have the grid only")
        self.encoder, self.predictor, self.target = encoder, predictor, Ema(encoder)
        self.settings = settings
        w = settings.weights
        expanded = w.variance or w.covariance or w.vicregl
        self.expander = Mlp(encoder.dim, 2 * encoder.dim, encoder.dim) if expanded else None
        self.size_code = nn.Linear(1, predictor.width) if settings.target == "chunk" else None
        self.vicregl = VICRegLLoss()
        self.watch = Watch(settings.monitor_every, settings.energy)

    def forward(self, batch: VideoBatch) -> StepOutput:
        assert batch.video is not None
        step = batch.place[0]
        known, goals, online, masks, asked, prediction = self.answer(batch)
        terms = {"energy": energy_loss(prediction, asked.goal, asked.hidden_weight, self.settings.energy)}
        loss = terms["energy"]
        for name, weight, value in self._terms(batch, batch.video, online, masks, prediction, asked):
            terms[name] = value
            loss = loss + weight * value
        metrics = {name: value.detach() for name, value in terms.items()}
        metrics |= self.watch(step, known, goals, asked, terms["energy"].detach())
        return StepOutput(loss, metrics)

    def answer(
        self, batch: VideoBatch, known: Encoded | None = None
    ) -> tuple[Encoded, Tensor | None, Encoded, Masks, Questions, Tensor]:
        """What the target knows (`known`, where it was asked before), the goals made of it, what the online encoder
        saw, the masks, what is asked for, and the prediction of it (B,Q,D)."""
        assert batch.video is not None
        video, step = batch.video, batch.place[0]
        grid = grid_of(video, self.encoder.unit, self.encoder.unit_frames)
        with torch.no_grad():
            known = self._encode_target(video) if known is None else known
        around = chunks_by_column(known) if self.settings.target == "chunk" else None
        masks = self.settings.masks.draw(grid, self.settings.seed, step, batch.indices, around)
        online = self._encode(video, masks, step)
        goals = None if self.settings.target == "chunk" else grid_goals(known, self.settings.still)
        asked = self.questions(known, goals, masks, step)
        hints = None if self.size_code is None else self.size_code(known.sizes.clamp_min(1e-3).log()[..., None])
        prediction = self.predictor(online.tokens, online.centroids, online.valid, asked.places, hints, asked.valid)
        return known, goals, online, masks, asked, prediction

    def _encode(self, video: Tensor, masks: Masks, step: int) -> Encoded:
        if isinstance(self.encoder, TubeletViT):
            return self.encoder.encode(video, masks.hidden)
        budget, regions = self._choice(masks, step)
        selects = self.encoder.downsampler.score is not None  # the score of what is kept learns from what is merged
        return self.encoder.encode(video, masks.hidden, budget, regions, capped=selects)

    def _encode_target(self, video: Tensor) -> Encoded:
        encoder, layers = self.target.model, self.settings.target_layers
        return (
            encoder.encode(video, layers=layers)
            if isinstance(encoder, TubeletViT)
            else encoder.encode(video, regions=False, capped=False, layers=layers)
        )

    def _choice(self, masks: Masks, step: int) -> tuple[int | None, bool]:
        """This step's budget (a fraction of the visible cells, or the content's own choice), and whether regions."""
        s = self.settings
        g = torch.Generator().manual_seed(s.seed * 1_000_003 + step * 2 + 1)
        draw, where, joined = torch.rand(3, generator=g).tolist()
        if s.budgets is None or draw >= s.budget_share:
            return None, joined < s.region_share
        low, high = s.budgets
        cells = int((~masks.hidden[0]).sum())
        return max(1, round(cells * (low + (high - low) * where))), joined < s.region_share

    def questions(self, known: Encoded, goals: Tensor | None, masks: Masks, step: int) -> Questions:
        """What is asked of the predictor: cells of the grid, or whole chunks where there are no goals of cells."""
        if goals is None:
            return chunk_questions(known, masks)
        s = self.settings
        power = max(0.0, 1 - step / (s.chunk_weight_until * s.total_steps)) if s.chunk_weight_until else 0.0
        return grid_questions(known, goals, masks, bool(s.weights.context), power)

    def _terms(
        self, batch: VideoBatch, video: Tensor, online: Encoded, masks: Masks, prediction: Tensor, asked: Questions
    ) -> list[tuple[str, float, Tensor]]:
        """(name, weight, value) of every term beside the energy that is switched on."""
        w, s = self.settings.weights, self.settings
        out: list[tuple[str, float, Tensor]] = []
        if asked.seen_weight is not None:
            low, high = (share * s.total_steps for share in s.context_ramp)
            ramp = min(max((batch.place[0] - low) / max(high - low, 1), 0.0), 1.0)
            context = energy_loss(prediction, asked.goal, asked.seen_weight, s.energy)
            out.append(("context", w.context * ramp, context))
        if self.expander is not None:
            cells = self.expander(online.on_cells())
            if w.variance or w.covariance:
                visible = (~masks.hidden.flatten(1)).to(cells.device)
                on_grid = to_grid(cells, online.cells.index, online.cells.valid, visible.shape[1])
                covariance = position_covariance(on_grid, visible)
                out.append(("variance", w.variance, variance_term(covariance)))
                out.append(("covariance", w.covariance, covariance_term(covariance)))
            if w.vicregl:
                out.append(("vicregl", w.vicregl, self._second_view(batch, video, cells, online, masks)))
        if online.routing is not None and online.routing.gated:
            r = online.routing
            out.append(("ratio", w.ratio, ratio_loss(r.boundary, r.prob, r.judged, w.cells_per_chunk)))
            if w.boundary:
                out.append(("boundary", w.boundary, boundary_loss(r.prob, r.judged)))
            if w.entropy and online.chunks is not None:
                out.append(("entropy", w.entropy, entropy_loss(online.chunks.assignment, online.cells.valid)))
        return out

    def _second_view(self, batch: VideoBatch, video: Tensor, cells: Tensor, online: Encoded, masks: Masks) -> Tensor:
        """VICRegL between this view and one by the other kind of mask; both are seen through the expander."""
        assert self.expander is not None
        plan = self.settings.masks
        other = MaskPlan(0.0 if masks.kind == "future" else 1.0, plan.horizon, plan.tube_ratios, plan.block_scale)
        step, grid = batch.place[0], online.cells.grid
        again = self._encode(video, other.draw(grid, self.settings.seed, step, batch.indices), step)
        return self.vicregl(cells, self.expander(again.on_cells()), online.cells.coords, again.cells.coords)

    def after_update(self, step: int) -> None:
        start, end = self.settings.ema
        decay = cosine_schedule(step, self.settings.total_steps, start, end)
        self.target.update(self.encoder, decay, self.settings.ema_broadcast)

    def alarm(self, metrics: dict[str, Any]) -> str | None:
        return collapse_alarm(metrics, self.encoder.dim)
