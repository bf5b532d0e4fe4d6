from dataclasses import replace

import pytest
import torch

from polyspace.data.batch import VideoBatch
from polyspace.data.moving import moving_clips, normalise
from polyspace.models.vjepa.predictor import Predictor
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.train.engine import PlainEngine
from polyspace.train.jepa import JepaPhase, JepaSettings, Weights
from polyspace.train.loop import FitSettings, fit
from polyspace.train.masking import MaskPlan, Masks
from polyspace.train.optim import build_adamw
from polyspace.train.questions import grid_questions
from polyspace.utils.monitor import effective_rank

GRID = (6, 3, 3)
EVERYTHING = Weights(context=0.5, variance=0.5, covariance=0.02, vicregl=0.01, ratio=0.03, entropy=0.01, boundary=0.01)


def phase(arch: str = "hnet", **changes) -> JepaPhase:
    torch.manual_seed(0)
    chunks = arch == "hnet"
    encoder = HNetViT(32, 2, 2, 8, cell_dim=32, conv_width=4) if chunks else TubeletViT(32, 2, 2, 8)
    settings = JepaSettings(**({"total_steps": 10, "monitor_every": 1} | changes))
    return JepaPhase(encoder, Predictor(32, 16, 1, 2), settings)


def batch(n: int = 6, step: int = 3, first: int = 0) -> VideoBatch:
    return VideoBatch(video=normalise(moving_clips(n, 0, size=24).video), place=(step, first))


def test_a_mask_is_a_function_of_seed_step_and_place():
    for plan in (MaskPlan(1.0), MaskPlan(0.0), MaskPlan(0.5)):
        whole = plan.draw(GRID, 0, 7, range(8))
        part = plan.draw(GRID, 0, 7, [5, 6, 7])
        assert whole.kind == part.kind
        assert torch.equal(whole.hidden[5:], part.hidden) and torch.equal(whole.asked[5:], part.asked)
    tubes = [MaskPlan(0.0).draw((6, 8, 8), 0, step, [0]).hidden for step in range(4)]
    assert not all(torch.equal(tubes[0], other) for other in tubes[1:])


def test_a_hidden_future_has_a_past_and_is_asked_up_to_the_horizon():
    for step in range(20):
        m = MaskPlan(1.0, horizon=2).draw(GRID, 0, step, range(2))
        seen = int((~m.hidden[0, :, 0, 0]).sum())
        assert 1 <= seen <= 5 and m.hidden[0, seen:].all() and not m.hidden[0, :seen].any()
        assert m.asked[0].sum() == 9 * min(2, 6 - seen) and not (m.asked & ~m.hidden).any()


def test_tubes_hide_the_same_number_of_whole_columns_in_every_clip():
    m = MaskPlan(0.0, tube_ratios=(0.75,)).draw((4, 8, 8), 0, 1, range(5))
    assert (m.hidden.flatten(1).sum(1) == 4 * 48).all()
    assert torch.equal(m.hidden[:, 0], m.hidden[:, 3])
    assert not torch.equal(m.hidden[0], m.hidden[1])


@pytest.mark.parametrize("arch", ["hnet", "tubelet"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_is_trained_gets_a_gradient_and_the_target_none(arch, share):
    p = phase(arch, masks=MaskPlan(share), weights=EVERYTHING, context_ramp=(0.0, 0.0))
    for _ in range(2):  # after one step the zero-initialised ends let gradients through
        out = p(batch(step=2))
        out.loss.backward()
        with torch.no_grad():
            for q in p.parameters():
                if q.grad is not None:
                    q.sub_(0.1 * q.grad)
    starved = {n for n, q in p.named_parameters() if q.requires_grad and (q.grad is None or not q.grad.any())}
    assert not starved
    assert all(q.grad is None and not q.requires_grad for q in p.target.parameters())


def test_the_loss_is_its_terms_weighted():
    p = phase(weights=EVERYTHING, context_ramp=(0.0, 0.0))
    out = p(batch())
    w = EVERYTHING
    expected = out.metrics["energy"] + sum(
        getattr(w, name) * out.metrics[name]
        for name in ("context", "variance", "covariance", "vicregl", "ratio", "entropy", "boundary")
    )
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_energy_is_the_distance_to_the_targets_own_latents(layers):
    p = phase("tubelet", masks=MaskPlan(1.0, horizon=1), target_layers=layers)
    b = batch(step=4)
    with torch.no_grad():
        p.target.model.vit.norm.weight.uniform_(0.5, 2)
    m = p.settings.masks.draw(GRID, 0, 4, range(6))
    seen = int((~m.hidden[0, :, 0, 0]).sum())
    with torch.no_grad():
        target = torch.nn.functional.layer_norm(p.target.model.encode(b.video, layers=layers).tokens, (32,)).view(
            6, 6, 9, 32
        )[:, seen]
        context = p.encoder(b.video[:, : 2 * seen])
        places = torch.tensor([[float(seen), y, x] for y in range(3) for x in range(3)]).expand(6, -1, -1)
        known = torch.tensor([[float(t), y, x] for t in range(seen) for y in range(3) for x in range(3)])
        guess = p.predictor(context.tokens, known.expand(6, -1, -1), None, places)
    assert p(b).metrics["energy"].item() == pytest.approx((guess - target).abs().mean().item(), rel=1e-5)


def test_hidden_pixels_reach_the_target_only():
    p = phase(masks=MaskPlan(1.0, horizon=0))
    b = batch(step=4)
    hidden = p.settings.masks.draw(GRID, 0, 4, range(6)).hidden
    area = hidden.repeat_interleave(2, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)[..., None]
    other = VideoBatch(video=torch.where(area, torch.randn_like(b.video), b.video), place=b.place)
    seen = []
    p.predictor.register_forward_hook(lambda _m, _i, out: seen.append(out))
    first, second = p(b), p(other)
    assert torch.equal(seen[0], seen[1])
    assert first.loss != second.loss


def test_the_chunk_mode_asks_for_chunks_that_are_hidden_altogether():
    p = phase(target="chunk")
    b = batch(step=1)
    out = p(b)
    assert out.loss.isfinite() and out.metrics["energy"] > 0
    masks = p.settings.masks.draw(GRID, 0, 1, range(6))
    known = p._encode_target(b.video)
    asked = p.questions(known, masks, 1)
    seen = (known.chunks.assignment * (~masks.hidden).flatten(1)[..., None]).sum(1)
    assert asked.valid.any() and not (asked.valid & (seen > 1e-6)).any() and not (asked.valid & ~known.valid).any()
    with pytest.raises(ValueError, match="chunk encoder"):
        phase("tubelet", target="chunk")


@pytest.mark.parametrize(
    ("power", "expected"), [(0.0, (2, 2, 2)), (1.0, (2, 1.2, 1 / 3)), (0.5, (2, 1 + 0.2**0.5, 2 / 6**0.5))]
)
def test_a_hidden_cell_weighs_alike_or_as_its_share_of_its_chunk(power, expected):
    """Two of six steps are asked for. Place 0 changes at every step, place 1 at the last one, the others never."""
    p = phase()
    steps, places = GRID[0], GRID[1] * GRID[2]
    hidden = torch.zeros(1, *GRID, dtype=torch.bool)
    hidden[:, 4:] = True
    owner = torch.arange(steps * places) % places + steps
    owner[::places] = torch.arange(steps)
    owner[-places + 1] = steps
    chosen = torch.nn.functional.one_hot(owner)[None].float()
    sizes = chosen.sum(1)
    with torch.no_grad():
        known = p.target.model.encode(batch(1).video)
        changes = {"sizes": sizes, "valid": sizes > 0, "tokens": torch.randn(*sizes.shape, 32)}
        changes["centroids"] = torch.zeros(*sizes.shape, 3)
        chunks = replace(known.chunks, assignment=chosen, **changes)
        known = replace(known, chunks=chunks, **changes)
        asked = grid_questions(known, Masks(hidden, hidden, "future"), False, power)
    for place in range(places):
        weight = asked.hidden_weight[0][asked.index[0] % places == place]
        assert weight.sum().item() == pytest.approx(expected[min(place, 2)])


@pytest.mark.parametrize(("until", "powers"), [(0.5, (1.0, 0.5, 0.0, 0.0)), (0.0, (0, 0, 0, 0)), (1e9, (1, 1, 1, 1))])
def test_weights_by_chunk_fade_out(until, powers, monkeypatch):
    given, p = [], phase(chunk_weight_until=until, total_steps=100)
    with torch.no_grad():
        known = p._encode_target(batch(1).video)
    masks = p.settings.masks.draw(GRID, 0, 0, [0])

    def spy(known, masks, context, power):
        given.append(power)
        return grid_questions(known, masks, context, power)

    monkeypatch.setattr("polyspace.train.jepa.grid_questions", spy)
    for step in (0, 25, 50, 99):
        p.questions(known, masks, step)
    assert given == pytest.approx(powers)


def test_budgets_are_drawn_from_the_range():
    p = phase(budgets=(0.2, 0.4), budget_share=1.0, masks=MaskPlan(1.0))
    m = p.settings.masks.draw(GRID, 0, 5, [0])
    cells = int((~m.hidden[0]).sum())
    drawn = {p._choice(m, step)[0] for step in range(30)}
    assert min(drawn) >= round(0.2 * cells) and max(drawn) <= round(0.4 * cells) and len(drawn) > 1


def test_the_average_follows_its_schedule():
    p = phase("tubelet", ema=(0.5, 1.0), total_steps=3)
    before = p.target.model.stem.project.weight.clone()
    with torch.no_grad():
        p.encoder.stem.project.weight.add_(1.0)
    p.after_update(0)
    assert torch.allclose(p.target.model.stem.project.weight, before + 0.5, atol=1e-6)
    p.after_update(2)
    assert torch.allclose(p.target.model.stem.project.weight, before + 0.5, atol=1e-6)


def test_the_first_update_has_the_first_decay_and_the_last_one_the_last(tmp_path, monkeypatch):
    p, decays = phase("tubelet", ema=(0.5, 1.0), total_steps=3), []
    monkeypatch.setattr(p.target, "update", lambda _, decay: decays.append(decay))
    engine = PlainEngine(p, build_adamw(p, 1e-3, 0.0), torch.device("cpu"))
    fit(engine, 8, lambda i: batch(len(i)), FitSettings(steps=3, batch=2, lr=1e-3), tmp_path)
    assert decays == pytest.approx([0.5, 0.75, 1.0])


def test_a_clip_with_nan_is_an_update_that_is_skipped_on_steps_that_are_logged_too():
    p, b = phase(), batch(32)
    b.video[3, 0, 0, 0, 0] = float("nan")
    engine = PlainEngine(p, build_adamw(p, 1e-3, 0.0), torch.device("cpu"))
    assert not engine.update([b], 1e-3)[1]


def test_visible_cells_weigh_by_their_distance_and_come_in_by_a_ramp():
    """One step hidden of six: cells one, two … steps before it weigh 1, 1/√2 …"""
    p = phase("tubelet", masks=MaskPlan(1.0), weights=Weights(context=0.5), context_ramp=(0.2, 0.6), total_steps=10)
    hidden = torch.zeros(1, *GRID, dtype=torch.bool)
    hidden[:, 5] = True
    with torch.no_grad():
        known = p._encode_target(batch(1).video)
    asked = grid_questions(known, Masks(hidden, hidden, "future"), True, 0.0)
    steps = asked.index[0] // 9
    expected = torch.where(steps < 5, (5 - steps).float().rsqrt(), 0)
    assert torch.allclose(asked.seen_weight[0], expected) and torch.equal(asked.hidden_weight[0] > 0, steps == 5)
    for step, ramp in ((0, 0.0), (2, 0.0), (3, 0.25), (6, 1.0), (9, 1.0)):
        out = p(batch(step=step))
        expected = out.metrics["energy"] + 0.5 * ramp * out.metrics["context"]
        assert out.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_bf16_losses_stay_close_to_fp32():
    exact, rough = phase()(batch()), phase(amp=True)(batch())
    assert rough.loss.dtype == torch.float32
    assert rough.loss.item() == pytest.approx(exact.loss.item(), rel=0.03)


def test_two_runs_and_a_resumed_one_end_in_the_same_bits(tmp_path):
    clips = moving_clips(12, 0, size=24)

    def run(folder, steps, stop=None):
        p = phase(masks=MaskPlan(0.5), weights=Weights(variance=0.5), budgets=(0.2, 0.6), total_steps=4)
        engine = PlainEngine(p, build_adamw(p, 1e-3, 0.04), torch.device("cpu"))
        settings = FitSettings(steps=steps, batch=4, lr=1e-3, save_every=2, log_every=1, accumulate=2)

        def load(i):
            if stop is not None and load.calls == stop:
                raise RuntimeError("killed")
            load.calls += 1
            return VideoBatch(video=normalise(clips.video[i]))

        load.calls = 0
        fit(engine, 12, load, settings, folder)
        return p

    whole = run(tmp_path / "a", 4)
    again = run(tmp_path / "b", 4)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "c", 4, stop=6)
    resumed = run(tmp_path / "c", 4)
    for other in (again, resumed):
        assert all(
            torch.equal(x, y) for x, y in zip(whole.state_dict().values(), other.state_dict().values(), strict=True)
        )


def test_the_target_keeps_single_places_whatever_the_encoder_does_in_use():
    p, b = phase(masks=MaskPlan(1.0)), batch(2, step=3)
    expected = p._encode_target(b.video)
    p.target.model.regions, p.target.model.max_chunks = True, 5
    assert p.target.model.encode(b.video).tokens.shape[1] == 5
    kept = p._encode_target(b.video)
    assert torch.equal(kept.tokens, expected.tokens)


def test_a_share_of_steps_sees_regions():
    p = phase(region_share=0.25, total_steps=400, masks=MaskPlan(1.0))
    m = p.settings.masks.draw(GRID, 0, 3, range(2))
    joined = [step for step in range(400) if p._choice(m, step)[1]]
    assert 70 <= len(joined) <= 130
    seen = []
    p.predictor.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    p.encoder.routing.gate.threshold.data.fill_(-2.0)  # everything is alike
    columns = GRID[1] * GRID[2]
    single = next(step for step in range(400) if step not in joined)
    for step in (joined[0], single):
        p(batch(2, step=step)).loss.backward()
    assert seen == [1, columns]


@pytest.mark.parametrize("changes", [{}, {"chunk_weight_until": 1e9}, {"energy": "smooth_l1"}, {"energy": "l2"}])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_predictor_that_knows_only_the_place_has_no_skill(changes, share):
    """Skill is 0 for the best constant per place, whatever the energy, its weights and the masks."""
    p, b = phase(masks=MaskPlan(share), **changes), batch(8, step=2)
    with torch.no_grad():
        known = p._encode_target(b.video)
        masks = p.settings.masks.draw(GRID, 0, 2, range(8))
        asked = p.questions(known, masks, 2)
        grid = torch.nn.functional.layer_norm(known.on_grid(), (32,))
        constant = grid.mean(0) if changes.get("energy") == "l2" else grid.median(0).values
        p.predictor.forward = lambda *_: constant[asked.index]
        assert p(b).metrics["skill"].item() == pytest.approx(0, abs=1e-5)


def test_whole_chunks_are_predicted_alike_whoever_else_is_in_the_batch():
    p, b = phase(target="chunk"), batch(4, step=1)
    seen = []
    p.predictor.register_forward_hook(lambda _m, _i, out: seen.append(out))
    p(b)
    p(VideoBatch(video=b.video[:1], place=b.place))
    count = seen[1].shape[1]
    assert torch.allclose(seen[0][:1, :count], seen[1], atol=1e-5)


def test_a_clip_that_is_left_out_shifts_no_other_clips_mask():
    p, b = phase("tubelet", masks=MaskPlan(0.0)), batch(4, step=1)
    drawn = []
    p.encoder.stem.register_forward_pre_hook(lambda _m, args: drawn.append(args[1]))
    p(b)
    p(VideoBatch(video=b.video[[0, 2, 3]], place=b.place, rows=(0, 2, 3)))
    assert torch.equal(drawn[0][[0, 2, 3]], drawn[1])


def test_few_clips_raise_no_alarm():
    metrics = {k: v.item() for k, v in phase()(batch(2)).metrics.items()}
    assert "effective_rank" not in metrics and phase().alarm(metrics) is None


def test_small_batches_are_gathered_until_they_say_something():
    p, video = phase(monitor_every=4), batch(12).video
    rows = [p(VideoBatch(video=video[4 * k : 4 * k + 4], place=(k + 5, 0))).metrics for k in range(3)]
    assert not any("effective_rank" in m or "chunks" in m for m in rows[:2])
    pooled = p.target.model.encode(video).pooled()
    assert torch.allclose(rows[2]["effective_rank"], effective_rank(pooled), atol=1e-4)
    alone = phase(monitor_every=4)(VideoBatch(video=video[8:], place=(7, 0))).metrics
    assert "chunks" in alone and "skill" not in alone


def test_micro_batches_are_gathered_too_and_their_metrics_averaged():
    p, video = phase(monitor_every=2), batch(12).video
    engine = PlainEngine(p, build_adamw(p, 1e-3, 0.0), torch.device("cpu"))
    parts = [VideoBatch(video=video[4 * k : 4 * k + 4], place=(3, 4 * k)) for k in range(3)]
    with torch.no_grad():
        expected = [phase(monitor_every=2)(part).metrics["energy"].item() for part in parts]
        pooled = p.target.model.encode(video).pooled()
        ranks = [effective_rank(pooled[:8]).item(), effective_rank(pooled[4:]).item()]
    metrics = engine.update(parts, 1e-4)[0].metrics
    assert metrics["energy"].item() == pytest.approx(sum(expected) / 3, rel=1e-4)
    assert metrics["effective_rank"].item() == pytest.approx(sum(ranks) / 2, rel=1e-3)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_variance_term_has_a_gradient_with_two_clips(share):
    """With space tubes over a third of the columns, two clips see some place in common."""
    p = phase("tubelet", masks=MaskPlan(share, tube_ratios=(0.3,)), weights=Weights(variance=1.0))
    p(batch(2)).loss.backward()
    assert p.expander.fc2.weight.grad.abs().sum() > 0


def test_a_query_at_a_tokens_place_carries_the_tokens_code():
    predictor, seen = Predictor(32, 16, 1, 2), []
    torch.nn.init.zeros_(predictor.into.weight)
    torch.nn.init.zeros_(predictor.into.bias)
    predictor.blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    places = torch.rand(2, 3, 3)
    predictor(torch.randn(2, 3, 32), places, None, places)
    assert torch.equal(seen[0][:, :3], seen[0][:, 3:])
