"""DROID (Khazatsky et al. 2024): robot states and the 7-D actions between them."""

import torch
from jaxtyping import Float
from torch import Tensor

# what DROID's own action/{cartesian_position, gripper_position} hold
COMMANDED_POSE = (
    "the commanded pose [x, y, z (m), extrinsic-xyz Euler (rad), gripper] at the time of each state, not a difference"
)


def rotation_from_euler(angles: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
    """Extrinsic xyz Euler angles (radians) -> R = Rz(c)·Ry(b)·Rx(a)."""
    (ca, cb, cc), (sa, sb, sc) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = [
        torch.stack([cc * cb, cc * sb * sa - sc * ca, cc * sb * ca + sc * sa], -1),
        torch.stack([sc * cb, sc * sb * sa + cc * ca, sc * sb * ca - cc * sa], -1),
        torch.stack([-sb, cb * sa, cb * ca], -1),
    ]
    return torch.stack(rows, -2)


def euler_from_rotation(r: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3"]:
    """The inverse, with b in [−π/2, π/2]; where b is ±π/2 only a ∓ c is defined and c is given as 0."""
    cos_b = torch.hypot(r[..., 0, 0], r[..., 1, 0])
    b = torch.atan2(-r[..., 2, 0], cos_b)
    locked = cos_b < 1e-9
    a = torch.where(locked, torch.atan2(-r[..., 1, 2], r[..., 1, 1]), torch.atan2(r[..., 2, 1], r[..., 2, 2]))
    c = torch.where(locked, torch.zeros_like(a), torch.atan2(r[..., 1, 0], r[..., 0, 0]))
    return torch.stack([a, b, c], -1)


def actions_from_states(states: Float[Tensor, "T 7"]) -> Float[Tensor, "S 7"]:
    """States [x, y, z (m), extrinsic-xyz Euler (rad), gripper] (T,7) -> actions (T−1,7).

    [Δxyz, Euler of R_{t+1}·R_tᵀ, Δgripper]: differences of the angles themselves are wrong where they wrap.
    float64 inside, the input's dtype out.
    """
    if states.ndim != 2 or states.shape[1] != 7 or states.shape[0] < 2:
        raise ValueError(f"states need shape (T ≥ 2, 7), got {tuple(states.shape)}")
    wide = states.double()
    rotation = rotation_from_euler(wide[:, 3:6])
    turn = euler_from_rotation(rotation[1:] @ rotation[:-1].mT)
    step = wide[1:] - wide[:-1]
    return torch.cat([step[:, :3], turn, step[:, 6:]], 1).to(states.dtype)
