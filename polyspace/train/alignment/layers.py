"""How alike the layers of several backbones are: debiased CKA between all of them, on the same clips."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyspace.data.extract import Views, decode_clip
from polyspace.data.transforms import prepare
from polyspace.data.video import VideoError
from polyspace.models.backbones import BackboneCard
from polyspace.utils.cka import CkaMeter
from polyspace.utils.log import Progress, warn

LEAST = 8  # clips; the estimate of fewer is noise


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model: its longest list of modules of one kind; none for a model without one."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    alike = [list(m) for m in lists if len({type(layer) for layer in m}) == 1]
    return max(alike, key=len, default=[])


class LayerMeans:
    """Calls a backbone on single clips and keeps the mean token that each of its layers gives out."""

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone, self.layers = backbone, layers_of(backbone)
        self.seen: dict[int, Tensor] = {}
        self.rows: list[list[Tensor]] = [[] for _ in self.layers]
        self.hooks = [layer.register_forward_hook(self._keeper(i)) for i, layer in enumerate(self.layers)]

    def _keeper(self, index: int) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tokens = output if isinstance(output, Tensor) else output[0]
            self.seen[index] = tokens.float().flatten(0, -2).mean(0).cpu()

        return keep

    @torch.inference_mode()
    def __call__(self, video: Tensor) -> None:
        """One clip (1,T,H,W,3)."""
        self.seen.clear()
        self.backbone(video)
        for index, rows in enumerate(self.rows):
            rows.append(self.seen[index])

    def features(self) -> list[Tensor]:
        """(n,D) of each layer, first to last."""
        return [torch.stack(rows) for rows in self.rows]

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


def layer_likeness(
    cards: Mapping[str, BackboneCard], paths: Sequence[Path], views: Views, device: torch.device
) -> dict[str, Any] | None:
    """CKA of every pair of layers of all backbones over the clips that can be read; each backbone is loaded once and
    sees them one by one. None with fewer than `LEAST` clips, or where no backbone has layers."""
    names: list[str] = []
    rows: dict[str, Tensor] = {}
    unread: set[Path] = set()
    with Progress(len(cards) * len(paths), "layers", "clip") as bar:
        for name, card in cards.items():
            means = LayerMeans(card.load().to(device))
            used = []
            for path in paths:
                bar.step()
                try:
                    frames = decode_clip(path, {name: card.plan}, views, card.plan.frames)[0][name][0]
                except (VideoError, IndexError):
                    unread.add(path)
                    continue
                means(prepare(frames, card.plan).to(device))
                used.append(path)
            means.close()
            for number, features in enumerate(means.features() if used else [], 1):
                key = f"{name} {number}"
                names.append(key)
                rows[key] = _kept(features, used, paths)
    readable = [i for i, path in enumerate(paths) if path not in unread]
    if unread:
        warn(f"layers: {len(unread)} of {len(paths)} clips could not be read by every backbone and are left out")
    if len(readable) < LEAST or not names:
        return None
    meter = CkaMeter(names)
    meter.update({name: value[readable] for name, value in rows.items()})
    return {"layers": names, "debiased": meter.matrix().tolist(), "clips": len(readable)}


def _kept(features: Tensor, used: Sequence[Path], paths: Sequence[Path]) -> Tensor:
    """Rows at their places among all paths; zeros where a clip could not be read."""
    out = features.new_zeros(len(paths), features.shape[1])
    place = {path: i for i, path in enumerate(paths)}
    out[[place[path] for path in used]] = features
    return out
