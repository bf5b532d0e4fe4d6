"""What held-out rollouts are compared with."""

import pytest
import torch

from polyspace.config import validate
from polyspace.models.action import ActionPredictor
from polyspace.train.downstream.episodes import LatentEpisodes
from polyspace.train.downstream.plans import plans, spread_windows
from polyspace.train.downstream.world import ActionConfig, change_weight, open_loop


class Adds(ActionPredictor):
    """Every latent moves by the action."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def rollout(self, latents, past, actions, places, history):
        return latents[:, -1:] + actions.cumsum(1)[:, :, None]


def test_a_model_that_is_right_gains_all_and_with_another_episodes_actions_loses():
    config = validate(ActionConfig, {"action_dim": 1, "horizon": 2, "energy": "l1"})
    actions = [torch.full((4, 1), 1.0), torch.full((4, 1), -1.0)]  # the episodes' own: to the right, to the left
    latents = [torch.cat([torch.zeros(1, 1), a.cumsum(0)])[:, None].expand(-1, 3, 1) for a in actions]
    held = LatentEpisodes(latents, actions, config.history + config.horizon)
    out = open_loop(Adds(), held, torch.zeros(3, 3), config)
    assert out["gain"] == pytest.approx(1.0) and out["gain_by_step"] == pytest.approx([1.0, 1.0])
    assert out["gain_other_actions"] == pytest.approx(-1.0)  # twice as far off as standing still
    assert out["gain_low"] == pytest.approx(1.0) and out["energy_copy"] == pytest.approx(1.5)


def test_cells_that_change_weigh_more_and_the_mean_weight_is_one():
    z = torch.zeros(1, 2, 4, 3)
    z[0, 1, 0] = 2.0
    assert torch.equal(change_weight(z, 0.0), torch.ones(1, 1, 4))
    assert torch.allclose(change_weight(z, 0.5), torch.tensor([[[2.5, 0.5, 0.5, 0.5]]]))


def test_the_travel_is_the_sum_of_actions_up_to_the_later_frame_or_the_end():
    actions = torch.arange(4.0)[:, None]
    latents = torch.arange(5.0)[:, None, None].expand(5, 2, 1)
    items = LatentEpisodes([latents], [actions], 2, apart=3)
    found = items.batch(torch.arange(len(items))).features
    assert found["first"][:, 0, 0].tolist() == [0, 1, 2, 3]
    assert found["later"][:, 0, 0].tolist() == [3, 4, 4, 4]
    assert found["travel"][:, 0].tolist() == [0 + 1 + 2, 1 + 2 + 3, 2 + 3, 3]


def test_cameras_of_one_episode_are_no_other_episode():
    config = validate(ActionConfig, {"action_dim": 1, "horizon": 2, "energy": "l1"})
    actions = [torch.full((4, 1), v) for v in (1.0, 1.0, -1.0, -1.0)]
    latents = [torch.cat([torch.zeros(1, 1), a.cumsum(0)])[:, None].expand(-1, 3, 1) for a in actions]
    held = LatentEpisodes(latents, actions, 3, groups=["a", "a", "b", "b"])
    other = held.elsewhere()
    assert other is not None and (held.groups[other] != held.groups).all()
    assert open_loop(Adds(), held, torch.zeros(3, 3), config)["gain_other_actions"] == pytest.approx(-1.0)
    alone = LatentEpisodes(latents[:2], actions[:2], 3, groups=["a", "a"])
    found = open_loop(Adds(), alone, torch.zeros(3, 3), config)
    assert found["gain"] == pytest.approx(1.0) and not {"gain_low", "gain_other_actions"} & found.keys()


def test_plans_of_a_model_that_is_right_come_near_what_was_done_and_leave_still_dims_alone():
    predictor = Adds()
    predictor.register_buffer("scale", torch.tensor([1.0, 1.0]))
    actions = [torch.tensor([[v, 0.0]]).expand(4, 2) for v in (1.0, -1.0, 0.5, -0.5)]
    latents = [torch.cat([torch.zeros(1, 2), a.cumsum(0)])[:, None].expand(-1, 3, 2) for a in actions]
    held = LatentEpisodes(latents, actions, 4)
    found = plans(predictor, held, torch.zeros(3, 3), 1, "l1", torch.cat(actions))
    assert len(found["windows"]) == 8  # every one of the few that there are
    assert found["miss"] < 0.25 * found["miss_no_action"] < found["miss_other_goal"]
    assert found["miss_mean_action"] == pytest.approx(found["miss_no_action"])  # to the right as often as to the left
    assert found["difference_high"] < 0
    for window in found["windows"]:
        assert torch.tensor(window["planned"])[:, 1].abs().max() < 1e-4
        assert window["energy_taken"] == pytest.approx(0, abs=1e-6)
        assert window["energy_planned"] < window["energy_no_action"]


def test_a_model_that_is_blind_to_actions_does_not_use_the_goal():
    predictor = Blind()
    predictor.register_buffer("scale", torch.ones(1))
    actions = [torch.full((4, 1), v) for v in (1.0, 1.2, 0.8, 1.1)]  # all to the right: so is any plan that is
    latents = [torch.cat([torch.zeros(1, 1), a.cumsum(0)])[:, None].expand(-1, 3, 1) for a in actions]
    found = plans(predictor, LatentEpisodes(latents, actions, 4), torch.zeros(3, 3), 1, "l1", torch.cat(actions))
    assert found["difference_low"] <= 0 <= found["difference_high"]
    assert found["miss_mean_action"] < found["miss_no_action"]
    alone = plans(predictor, LatentEpisodes(latents[:1], actions[:1], 4), torch.zeros(3, 3), 1, "l1", actions[0])
    assert not {"miss_other_goal", "difference_low"} & alone.keys()


class Blind(Adds):
    """Nothing moves."""

    def rollout(self, latents, past, actions, places, history):
        return latents[:, -1:].expand(-1, actions.shape[1], -1, -1)


def test_windows_are_spread_over_episodes_before_a_second_of_any():
    groups = torch.tensor([0] * 5 + [1] * 3 + [2])
    assert [int(groups[i]) for i in spread_windows(groups, 5)] == [0, 1, 2, 0, 1]
    assert sorted(spread_windows(groups, 99)) == list(range(9))
