"""Losses: pure functions ending in _loss, one idea a file; fp32 inside, a scalar out."""

from polyspace.losses.alignment import cosine_loss, l2_loss, smooth_l1_loss
from polyspace.losses.auxiliaries import boundary_loss, entropy_loss, ratio_loss
from polyspace.losses.barlow import barlow_twins_loss
from polyspace.losses.contrastive import info_nce_loss, nt_xent_loss
from polyspace.losses.energy import aligned_energy_loss, energy_loss
from polyspace.losses.vicreg import vicreg_loss
from polyspace.losses.vicregl import VICRegLLoss

__all__ = [
    "VICRegLLoss",
    "aligned_energy_loss",
    "barlow_twins_loss",
    "boundary_loss",
    "cosine_loss",
    "energy_loss",
    "entropy_loss",
    "info_nce_loss",
    "l2_loss",
    "nt_xent_loss",
    "ratio_loss",
    "smooth_l1_loss",
    "vicreg_loss",
]
