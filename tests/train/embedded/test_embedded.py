import json
from dataclasses import fields

import pytest
import torch
import transformers

from polyspace.models.backbones import describe_all
from polyspace.models.backbones.hnet_vjepa import HouseBackbone
from polyspace.train.embedded import make as embedded
from polyspace.train.embedded.clips import BINS, LOOKS, TURNS, StateClips, draw_clips, make_batch, turns_bin
from polyspace.train.embedded.latents import at, encode
from polyspace.train.embedded.phases import cells_of
from polyspace.train.vjepa.masking import Masks

NAMES = list(embedded.TASKS)
TEACHERS = NAMES[1:]


@pytest.fixture(scope="module")
def clips() -> StateClips:
    return draw_clips(6, 0)


def phase_of(name):
    torch.manual_seed(0)
    return embedded.TASKS[name].build()


def batch_of(phase, clips):
    return make_batch(clips, torch.arange(len(clips)), phase.plan)


@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_trained_gets_a_gradient_and_the_target_none(clips, name):
    phase = phase_of(name).train()
    for _ in range(2):  # after one step the zero-initialised ends let gradients through
        phase(batch_of(phase, clips)).loss.backward()
        with torch.no_grad():
            for p in phase.parameters():
                p.sub_(0.1 * p.grad) if p.grad is not None else None
    starved = {n for n, p in phase.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert not {n for n in starved if "attention.key.bias" not in n}  # softmax doesn't see a key's bias
    frozen = [n for n, p in phase.named_parameters() if not p.requires_grad]
    assert all("target." in n for n in frozen) and bool(frozen) == (name in ("hnet_vjepa", "vjepa2"))
    assert all(p.grad is None for n, p in phase.named_parameters() if n in frozen)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_hidden_pixels_change_what_the_latent_phase_sees_and_predicts_by_exactly_nothing(clips, share):
    phase = phase_of("vjepa2").eval()
    video = batch_of(phase, clips).video
    t, h, w = phase.backbone.grid
    masks = embedded.LatentPhase(future_share=share).masks.draw((t, h, w), 0, 5, range(len(video)))
    goals = phase.goals(video)
    _, seen, guess, _ = phase.predict(video, masks, goals)
    pixels = masks.hidden.repeat_interleave(2, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)[..., None]
    _, again, other, _ = phase.predict(torch.where(pixels, video + 1, video), masks, goals)
    assert torch.equal(seen, again) and torch.equal(guess, other)
    _, moved, _, _ = phase.predict(torch.where(pixels, video, video + 1), masks, goals)
    assert not torch.allclose(seen, moved)


def test_encoding_all_tokens_is_what_the_class_itself_does(clips):
    phase = phase_of("vjepa2").eval()
    video = batch_of(phase, clips).video
    expected = phase.backbone(video).tokens
    every = torch.arange(expected.shape[1]).expand(len(video), -1)
    torch.testing.assert_close(encode(phase.model.encoder, video)[1], expected)
    torch.testing.assert_close(encode(phase.model.encoder, video, every)[1], expected)


def test_tokens_keep_their_places_in_whatever_order_they_are_given(clips):
    """If places were counted along what is visible, another order would be another clip."""
    phase = phase_of("vjepa2").eval()
    video = batch_of(phase, clips).video[:1]
    order = torch.tensor([[3, 40, 11, 70]])
    there, back = (encode(phase.model.encoder, video, i)[1] for i in (order, order.flip(1)))
    torch.testing.assert_close(there, back.flip(1), rtol=1e-4, atol=1e-4)
    counted = encode(phase.model.encoder, video, torch.tensor([[0, 1, 2, 3]]))[1]
    assert (counted - there).abs().max() > 0.1


def test_skill_is_zero_for_the_best_constant(clips, monkeypatch):
    phase = phase_of("vjepa2").eval()
    video = batch_of(phase, clips).video
    goals = phase.goals(video)
    constant = goals.mean(0, keepdim=True).expand_as(goals)

    def constant_guess(_, masks: Masks, goals):
        return None, None, at(constant, masks.asked), at(goals, masks.asked)

    monkeypatch.setattr(phase, "predict", constant_guess)
    assert phase.skill(video) == pytest.approx(0, abs=1e-6)


def test_cells_are_the_pixels_that_the_tubelet_embedding_reads():
    video = torch.arange(4 * 16 * 24 * 3).view(1, 4, 16, 24, 3).float()
    cells = cells_of(video, 2)
    assert cells.shape == (1, 2 * 2 * 3, 2 * 8 * 8 * 3)
    assert torch.equal(cells[0, 6 + 3 + 2].view(2, 8, 8, 3), video[0, 2:4, 8:16, 16:24])


def test_the_mean_as_a_guess_explains_nothing_and_the_truth_everything(clips, monkeypatch):
    phase = phase_of("videomae").eval()
    phase.held_out = batch_of(phase, clips)
    _, truth = phase.reconstruct(phase.held_out.video, 0, list(range(len(clips))))
    mean = truth.unflatten(-1, (-1, 3)).mean((0, 1, 2)).repeat(truth.shape[-1] // 3).expand_as(truth)
    for guess, expected in ((mean, 0.0), (truth, 1.0)):
        monkeypatch.setattr(phase, "reconstruct", lambda *_, guess=guess: (guess, truth))
        assert phase.evaluate(0)["explained_variance"] == pytest.approx(expected, abs=1e-5)


def test_equally_many_cells_are_hidden_in_every_clip_and_others_in_each_clip_and_step():
    phase = phase_of("videomae")
    hidden = phase.hidden(3, [0, 1, 2])
    assert hidden.sum(1).tolist() == [43] * 3 and hidden.shape == (3, 72)
    assert torch.equal(hidden[1:], phase.hidden(3, [1, 2]))
    assert not torch.equal(hidden[0], hidden[1]) and not torch.equal(hidden, phase.hidden(4, [0, 1, 2]))


def test_classes_of_speeds_and_their_names_agree():
    assert len(TURNS) == BINS and len(LOOKS) == 24 and "red ring" in LOOKS
    for turns in (-4.5, -0.2, 0.2, 3.7, 4.5):
        low, high = (float(x) for x in TURNS[turns_bin(torch.tensor([turns]))].split(" turns")[0].split(" to "))
        assert low <= turns <= high


@pytest.mark.parametrize("draw", range(8))
def test_mirrors_and_quarter_turns_take_the_facts_with_them(clips, draw):
    """Where the facts say that the object is, the clip changes most over time; mirrors turn the sense of rotation."""
    plan = phase_of("vivit").plan
    batch = make_batch(clips, torch.arange(6), plan, generator=torch.Generator().manual_seed(draw))
    assert batch.video.shape == (6, 32, 24, 24, 3) and torch.equal(batch.features["look"], clips.look)
    x, y, dx, dy = batch.features["place"].unbind(-1)
    turning = ((x - x.mean(1, keepdim=True)) * dy - (y - y.mean(1, keepdim=True)) * dx).sum(1)
    assert torch.equal(turning > 0, batch.features["turns"] > 0)
    moved = (batch.video - batch.video.median(1, keepdim=True).values).abs().mean(-1)  # (6,32,24,24)
    column, row = ((v * 12 + 12).long().clamp(0, 23) for v in (x, y))
    clip, frame = torch.arange(6)[:, None], torch.arange(32)[None]
    assert moved[clip, frame, row, column].mean() > 3 * moved.mean()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All four, after two updates."""
    out = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    clips, held_out = draw_clips(40, 0), draw_clips(12, 1)
    held_out = StateClips(*(getattr(held_out, f.name).repeat_interleave(64, 0) for f in fields(held_out)))
    config = embedded.EmbeddedConfig(out=out / "out", clips=40, held_out=768, steps=2, work=out / "work")
    return out / "out", {name: embedded.train_one(config, name, clips, held_out) for name in NAMES}


def test_a_saved_folder_loads_with_the_weights_of_its_last_update(made, clips):
    folder, _ = made
    places = [f"{name}={folder / name}" for name in NAMES]
    cards = describe_all("hnet_vjepa", TEACHERS, 16, places, strict=True)
    for name, card in cards.items():
        phase = phase_of(name)
        assert card.plan.crop == phase.plan.crop and card.plan.range() == pytest.approx(phase.plan.range())
        trained = folder.parent / "work" / name / "step_000002" / "model.safetensors"
        from safetensors.torch import load_file

        phase.load_state_dict(load_file(trained))
        video = batch_of(phase, clips).video
        own = HouseBackbone(phase.jepa.target.model) if name == "hnet_vjepa" else phase.eval().backbone
        expected, got = own(video), card.load()(video)
        torch.testing.assert_close(got.tokens, expected.tokens)
        torch.testing.assert_close(got.pooled, expected.pooled)


def test_classifiers_keep_their_heads_and_the_names_of_their_classes(made):
    folder, _ = made
    for name, stem, names in (("timesformer", "Timesformer", LOOKS), ("vivit", "Vivit", TURNS)):
        model, report = getattr(transformers, f"{stem}ForVideoClassification").from_pretrained(
            folder / name, output_loading_info=True
        )
        assert not report["missing_keys"] and model.config.id2label == dict(enumerate(names))
        assert model.classifier.out_features == len(names)


def test_no_decoder_predictor_or_target_is_saved(made):
    from safetensors import safe_open

    for name in ("vjepa2", "videomae"):
        with safe_open(made[0] / name / "model.safetensors", "pt") as file:
            assert not [k for k in file.keys() if k.startswith(("decoder", "predictor", "target", "mask"))]  # noqa: SIM118
    assert sum(f.stat().st_size for f in made[0].rglob("*") if f.is_file()) <= 8e6


def test_about_says_objective_scores_and_settings_and_the_report_shows_them(made):
    folder, about = made
    for name in NAMES:
        assert json.loads((folder / name / "about.json").read_text()) == json.loads(json.dumps(about[name]))
        assert about[name]["held_out"].keys() == about[name]["random_init"].keys()
        assert about[name]["settings"]["steps"] == 2


def test_measuring_the_skill_of_chunks_leaves_the_run_as_it_was(clips):
    phase = phase_of("hnet_vjepa").eval()
    phase.held_out = batch_of(phase, clips.__class__(*(x.repeat(2, *[1] * (x.ndim - 1)) for x in vars(clips).values())))
    watch, state = phase.jepa.watch, {k: v.clone() for k, v in phase.state_dict().items()}
    with torch.no_grad():
        assert phase.skill() < 0.2  # of random weights
    assert phase.jepa.watch is watch and not watch.seen
    assert all(torch.equal(value, state[key]) for key, value in phase.state_dict().items())
