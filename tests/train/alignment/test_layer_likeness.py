"""Layers are found, and those that say the same are alike."""

import numpy as np
import torch
from torch import nn

from polyspace.data.extract import Views
from polyspace.data.sampling import Sampling
from polyspace.data.video_writer import write_video
from polyspace.models.backbones import describe_all
from polyspace.train.alignment.layers import LayerMeans, layer_likeness, layers_of


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.short = nn.ModuleList([nn.Linear(3, 3)])
        self.mixed = nn.ModuleList([nn.Linear(3, 3), nn.Identity(), nn.Identity(), nn.Identity()])
        self.blocks = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_layers_are_the_longest_list_of_one_kind():
    model = Stack()
    assert layers_of(model) == list(model.blocks)
    assert layers_of(nn.Linear(2, 2)) == []


def test_each_layer_gives_its_mean_token():
    model = Stack()
    x = torch.randn(1, 2, 2, 2, 3)
    means = LayerMeans(model)
    means(x)
    first, last = means.features()
    assert torch.allclose(first[0], model.blocks[0](x).flatten(0, -2).mean(0))
    assert torch.allclose(last[0], model(x).flatten(0, -2).mean(0))
    means.close()
    model(x)
    assert len(means.features()[0]) == 1


def test_every_layer_of_every_backbone_is_compared_and_broken_clips_are_left_out(tmp_path, checkpoints):
    paths = []
    for n in range(10):
        paths.append(tmp_path / f"{n}.avi")
        write_video(paths[-1], np.random.default_rng(n).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8))
    paths[3].write_bytes(b"no video")
    places = [f"{name}={checkpoints[name]}" for name in ("vjepa2", "videomae", "vivit")]
    cards = describe_all("vjepa2", ["videomae", "vivit"], 4, places)
    found = layer_likeness(cards, paths, Views(Sampling.parse("segments")), torch.device("cpu"))
    assert found["clips"] == 9
    assert found["layers"] == [f"{name} {n}" for name in ("vjepa2", "videomae", "vivit") for n in (1, 2)]
    matrix = torch.tensor(found["debiased"])
    assert torch.allclose(matrix, matrix.T) and torch.allclose(matrix.diagonal(), torch.ones(6, dtype=matrix.dtype))


def test_few_clips_say_nothing(tmp_path, checkpoints):
    write_video(tmp_path / "a.avi", np.zeros((8, 32, 32, 3), np.uint8))
    cards = describe_all("vjepa2", [], 4, [f"vjepa2={checkpoints['vjepa2']}"])
    views = Views(Sampling.parse("segments"))
    assert layer_likeness(cards, [tmp_path / "a.avi"], views, torch.device("cpu")) is None
