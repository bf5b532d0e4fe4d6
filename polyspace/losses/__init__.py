"""Losses: pure functions ending in _loss, one idea a file; fp32 inside, a scalar out."""

from polyspace.losses.auxiliaries import boundary_loss, entropy_loss, ratio_loss
from polyspace.losses.contrastive import nt_xent_loss
from polyspace.losses.energy import aligned_energy_loss, energy_loss
from polyspace.losses.vicregl import VICRegLLoss

__all__ = [
    "VICRegLLoss",
    "aligned_energy_loss",
    "boundary_loss",
    "energy_loss",
    "entropy_loss",
    "nt_xent_loss",
    "ratio_loss",
]
