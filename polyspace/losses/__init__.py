"""Pure functions from tensors to a scalar; names end in _loss."""

from polyspace.losses.contrastive import nt_xent_loss

__all__ = ["nt_xent_loss"]
