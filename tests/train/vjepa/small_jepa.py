import torch

from polyspace.data.batch import VideoBatch
from polyspace.data.moving import moving_clips, normalise
from polyspace.models.vjepa.predictor import Predictor
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.train.vjepa.jepa import JepaPhase, JepaSettings, Weights

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
