import pytest
import torch
from small_jepa import EVERYTHING, GRID, batch, phase

from polyspace.data.batch import VideoBatch
from polyspace.data.moving import moving_clips, normalise
from polyspace.models.vjepa.predictor import Predictor
from polyspace.train.engine import PlainEngine
from polyspace.train.loop import FitSettings, fit
from polyspace.train.optim import build_adamw
from polyspace.train.vjepa.jepa import Weights
from polyspace.train.vjepa.masking import MaskPlan


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
    monkeypatch.setattr(p.target, "update", lambda _, decay, broadcast: decays.append(decay))
    engine = PlainEngine(p, build_adamw(p, 1e-3, 0.0), torch.device("cpu"))
    fit(engine, 8, lambda i: batch(len(i)), FitSettings(steps=3, batch=2, lr=1e-3), tmp_path)
    assert decays == pytest.approx([0.5, 0.75, 1.0])


def test_a_clip_with_nan_is_an_update_that_is_skipped_on_steps_that_are_logged_too():
    p, b = phase(), batch(32)
    b.video[3, 0, 0, 0, 0] = float("nan")
    engine = PlainEngine(p, build_adamw(p, 1e-3, 0.0), torch.device("cpu"))
    assert not engine.update([b], 1e-3)[1]


def test_bf16_losses_stay_close_to_fp32():
    found = []
    for precision in ("fp32", "bf16"):
        p = phase()
        engine = PlainEngine(p, build_adamw(p, 1e-3, 0.0), torch.device("cpu"), precision=precision)
        found.append(engine.update([batch()], 1e-3)[0].loss)
    assert found[1].dtype == torch.float32 and not torch.equal(*found)
    assert found[1].item() == pytest.approx(found[0].item(), rel=0.03)


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
