"""The world model: causal in time, starting from "nothing changes", and what it sees of actions."""

import pytest
import torch
from small_hnet import encoder

from polyspace.models.action import (
    ActionPredictor,
    CrossAttentionFuser,
    FrameCausalAttention,
    WorldModel,
    frame_mask,
)

N, T = 6, 4
PLACES = torch.cartesian_prod(torch.arange(1.0), torch.arange(2.0), torch.arange(3.0))


def predictor(**changes) -> ActionPredictor:
    model = ActionPredictor(**({"dim": 16, "action_dim": 3, "width": 16, "depth": 2, "heads": 2} | changes))
    with torch.no_grad():
        model.out.weight.normal_()
    return model.eval()


def latents(b: int = 2, t: int = T) -> torch.Tensor:
    return torch.nn.functional.layer_norm(torch.randn(b, t, N, 16), (16,))


def test_it_starts_as_nothing_changes():
    model, z = ActionPredictor(16, 3, 16, 1, 2), latents()
    assert torch.allclose(model(z, torch.randn(2, T, 3), PLACES), z, atol=1e-4)


def test_later_frames_and_actions_change_no_earlier_prediction():
    model, z, a = predictor(), latents(), torch.randn(2, T, 3)
    before = model(z, a, PLACES)
    z2, a2 = z.clone(), a.clone()
    z2[:, 2:], a2[:, 2:] = latents(t=T - 2), 9.0
    after = model(z2, a2, PLACES)
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.allclose(before[:, 2:], after[:, 2:])


def test_the_action_of_a_frame_changes_its_prediction():
    model, z, a = predictor(), latents(), torch.randn(2, T, 3)
    b = a.clone()
    b[:, 1] += 1
    differs = (model(z, a, PLACES) - model(z, b, PLACES)).abs().amax((0, 2, 3))
    assert differs[0] == 0 and (differs[1:] > 1e-4).all()


def test_a_rollout_is_prediction_after_prediction():
    model, z, a = predictor(), latents(t=2), torch.randn(2, 3, 3)
    out = model.rollout(z, a[:, :1], a[:, 1:], PLACES, history=2)
    first = model(z, a[:, :2], PLACES)[:, -1]
    second = model(torch.stack([z[:, 1], first], 1), a[:, 1:3], PLACES)[:, -1]
    assert torch.allclose(out, torch.stack([first, second], 1), atol=1e-6)


def test_actions_count_in_standard_deviations():
    model, z, a = predictor(), latents(), torch.randn(2, T, 3)
    out = model(z, a, PLACES)
    model.scale.fill_(4.0)
    assert torch.allclose(model(z, 4 * a, PLACES), out, atol=1e-5)
    with pytest.raises(ValueError, match="5 dims"):
        model(z, torch.randn(2, T, 5), PLACES)


def test_the_fuser_can_look_away_from_actions():
    fuser = CrossAttentionFuser(16, 2, 3)
    with torch.no_grad():
        fuser.key_value.weight.zero_()
        fuser.key_value.bias.zero_()
        fuser.out.bias.zero_()
    x = torch.randn(2, T, N, 16)
    assert torch.equal(fuser(x, torch.randn(2, T, 3)), x)


def test_frames_are_encoded_each_for_itself_and_normalised():
    world = WorldModel(encoder(), predictor(dim=32), history=1)
    frames = torch.randn(3, 32, 32, 3)
    z = world.encode(frames)
    assert z.shape == (3, 16, 32) and torch.allclose(z.mean(-1), torch.zeros(3, 16), atol=1e-5)
    assert torch.allclose(world.encode(frames[1:2]), z[1:2], atol=1e-5)
    assert torch.equal(world.places(32, 16, z), torch.tensor([[0.0, r, c] for r in range(4) for c in range(2)]))
    assert not any(p.requires_grad for p in world.encoder.parameters()) and not world.train().encoder.training


def test_moving_heads_equal_attention_with_the_distances_written_out():
    attention, places = FrameCausalAttention(16, 2, 3).double(), PLACES[:, 1:].double()
    torch.nn.init.normal_(attention.follow.weight)
    x, actions = torch.randn(2, 2 * N, 16, dtype=torch.float64), torch.randn(2, 2, 3, dtype=torch.float64)
    mask = frame_mask(2, N, N, x)
    q, k, v = (y.view(2, 2 * N, 2, 8).transpose(1, 2) for y in attention.qkv(x).chunk(3, -1))
    logits = q @ k.mT / 8**0.5
    moved = attention.follow(actions).view(2, 2, 2, 2)  # clip, frame, head, (row, column)
    for b, h, i, j in torch.cartesian_prod(*(torch.arange(n) for n in (2, 2, 2 * N, 2 * N))).tolist():
        aim = places[i % N] + attention.offset[h] + moved[b, i // N, h]
        logits[b, h, i, j] -= attention.sharpness[h] * ((aim - places[j % N]) ** 2).sum()
    expected = attention.out(((logits + mask).softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(attention(x, mask, places, actions), expected, atol=1e-9)


def test_an_action_can_carry_content_to_the_next_cell():
    """A dot on a row of cells moves by the action: learned in 300 small updates."""
    torch.manual_seed(0)
    cells, places = 8, torch.cartesian_prod(torch.zeros(1), torch.zeros(1), torch.arange(8.0))
    look = torch.nn.functional.layer_norm(torch.randn(2, 8), (8,))

    def draw(n, low, high):
        at, step = torch.randint(low, high, (n,)), torch.randint(-1, 2, (n,))
        scene = look[0].repeat(n, 2, cells, 1)
        scene[torch.arange(n), 0, at] = look[1]
        scene[torch.arange(n), 1, at + step] = look[1]
        return scene, step.float()[:, None, None]

    model = ActionPredictor(8, 1, 16, 1, 4)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(300):
        z, a = draw(32, 1, 5)
        loss = (model(z[:, :1], a, places) - z[:, 1:]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z, a = draw(64, 1, 5)
    copied = (z[:, :1] - z[:, 1:]).abs().mean()
    assert (model(z[:, :1], a, places) - z[:, 1:]).abs().mean() < 0.5 * copied
