"""PolySpace as a library: videos in, features of any space, classes and neighbours out.

ps = polyspace.load("bundle")
ps.encode("clip.mp4", space="videomae")
"""

import math
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from jaxtyping import Float, UInt8
from torch import Tensor

from polyspace.bundle.files import load_bundle, save_bundle
from polyspace.bundle.gather import gather
from polyspace.bundle.indexing import index_videos
from polyspace.bundle.inputs import Video, batches, prepare_videos
from polyspace.bundle.parts import Bundle
from polyspace.bundle.search import Neighbour, neighbours, open_store
from polyspace.data.feature_store import FeatureStore
from polyspace.data.index import Index
from polyspace.models.backbones.hnet_vjepa import HouseBackbone
from polyspace.models.language import TextEncoder, TwoTowers
from polyspace.models.spaces.tokens import resample_tokens
from polyspace.models.vjepa.encoded import Encoded
from polyspace.models.vjepa.look import chunk_maps
from polyspace.models.vjepa.vit import HNetViT
from polyspace.train.alignment.fusion_phase import LABELS
from polyspace.train.alignment.stores import check_space
from polyspace.train.downstream.saved_probe import Probe, load_probe
from polyspace.train.language_align import About as Form
from polyspace.train.language_align import load_language
from polyspace.utils.checkpoint_io import read_json
from polyspace.utils.chunk_map import ChunkMap, tubelets
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.misc import get_device

LANGUAGE = "language"  # the space that clips share with sentences
CHOICES = {label: name for name, label in LABELS.items()}
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")


class PolySpace(ModelHubMixin):
    """One student, and every space that it serves. Made by `polyspace.load`, `from_pretrained` or from a Bundle.

    A video is a path, or uint8 (T,H,W,3) of a whole clip, from which frames are sampled as in training. One video gives
    one result, a list of them a batch. `spaces` are the names that `encode` takes, with their dims.
    """

    def __init__(self, bundle: Bundle, device: str | torch.device = "auto") -> None:
        self._hub_mixin_config = None  # bundle.json is all there is; the mixin would write its own beside it
        self.bundle, self.device = bundle, get_device(str(device))
        self.backbone = bundle.card.load().to(self.device)
        for part in (bundle.converters, bundle.tokens, bundle.heads):
            if part is not None:
                part.to(self.device)
        self._kept: dict[tuple[str, str], Tensor] = {}  # the last store's vectors

    @cached_property
    def _language(self) -> tuple[TwoTowers, TextEncoder]:
        if LANGUAGE not in self.bundle.folders:
            raise UserError("nothing here reads text; bundle a run that has the language phase")
        towers, text = load_language(self.bundle.folders[LANGUAGE])
        return towers.to(self.device), text.to(self.device)

    @cached_property
    def _probe(self) -> Probe | None:
        return load_probe(self.bundle.folders["probe"]).to(self.device) if "probe" in self.bundle.folders else None

    @property
    def student(self) -> str:
        return self.bundle.card.name

    @property
    def spaces(self) -> dict[str, int]:
        """Name and dims of each space, the student's own first."""
        served = {} if self.bundle.converters is None else self.bundle.converters.dims
        place = self.bundle.folders.get(LANGUAGE)
        text = (
            {} if place is None else {LANGUAGE: int(read_json(place / "language.json", "language model", Form)["dim"])}
        )
        return {self.student: self.bundle.card.dim} | served | text

    @property
    def classes(self) -> list[str]:
        """What `classify` tells apart; empty where nothing was trained to."""
        return self.bundle.classes or (self._probe.classes if self._probe is not None else [])

    @torch.no_grad()
    def encode(
        self,
        videos: Video | Sequence[Video],
        space: str | None = None,
        *,
        num_chunks: int | None = None,
        tokens: bool = False,
    ) -> Float[Tensor, "*shape"]:
        """Features on the CPU: (D,) of one video, (B,D) of a list; with `tokens` (N,D) or (B,N,D) on the grid of the
        space. `num_chunks`: the budget of this call, for a student that chooses its tokens. UserError for an unknown
        space, VideoError for a file that can't be read."""
        self._check_space(space, tokens)
        one, parts = batches(videos)
        out = [self._encode(part, space, num_chunks, tokens) for part in parts]
        if not out:
            grid = self.bundle.spaces.get(space or self.student, self.bundle.card.about())["grid"]
            return torch.empty(0, *([math.prod(grid)] if tokens else []), self.spaces[space or self.student])
        made = torch.cat(out)
        return made[0] if one else made

    def _encode(self, videos: list[Video], space: str | None, num_chunks: int | None, tokens: bool) -> Tensor:
        clips = self.prepare(videos)
        if space == LANGUAGE:
            seen = self._chunks(clips, num_chunks)
            return self._language[0].embed_video(seen.tokens, seen.valid).cpu()
        found = self._with_budget(num_chunks)(clips)
        if space is None or space == self.student:
            return (found.tokens if tokens else found.pooled).float().cpu()
        if tokens:
            assert self.bundle.tokens is not None
            grid = tuple(self.bundle.spaces[space]["grid"])
            return self.bundle.tokens[space](resample_tokens(found.tokens.float(), self.bundle.card.grid, grid)).cpu()
        return self.translate(found.pooled, space)

    @torch.no_grad()
    def translate(self, features: Float[Tensor, "*B D"], space: str) -> Float[Tensor, "*B E"]:
        """The student's clip features, from wherever they were kept, in another space; on the CPU."""
        if self.bundle.converters is None or space not in self.bundle.converters.dims:
            known = [] if self.bundle.converters is None else list(self.bundle.converters.dims)
            raise UserError(
                f"no converter to {space!r}{did_you_mean(space, known)}; {', '.join(known) or 'none'} are here"
            )
        if features.shape[-1] != self.bundle.card.dim:
            raise UserError(f"features have {features.shape[-1]} dims, {self.student} has {self.bundle.card.dim}")
        return self.bundle.converters[space](features.float().to(self.device)).cpu()

    @torch.no_grad()
    def embed_text(self, texts: str | Sequence[str]) -> Float[Tensor, "*shape"]:
        """Unit vectors of sentences in the space `language`: (E,) of one, (B,E) of a list."""
        towers, text = self._language
        one = isinstance(texts, str)
        made = towers.embed_text(text([texts] if isinstance(texts, str) else list(texts))).cpu()
        return made[0] if one else made

    @torch.no_grad()
    def classify(
        self, videos: Video | Sequence[Video], k: int = 5, head: str | None = None, num_chunks: int | None = None
    ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """The k most likely classes with their probability, best first; a list of these for a list of videos.

        `head`: fusion, student or probe; by default the one of fusion and student that held-out clips chose, else the
        probe. A probe of several classes a clip gives each its own probability.
        """
        one, parts = batches(videos)
        head = head or (CHOICES[self.bundle.choice["head"]] if self.bundle.heads is not None else "probe")
        logits = [self._scores(self.prepare(part), head, num_chunks) for part in parts]
        if not logits:
            return []
        several = head == "probe" and self._probe is not None and self._probe.several
        chances = torch.cat(logits).sigmoid() if several else torch.cat(logits).softmax(-1)
        names = self._probe.classes if head == "probe" and self._probe is not None else self.classes
        top = chances.topk(min(k, len(names)), -1)
        rows = [
            [(names[i], p) for i, p in zip(index.tolist(), value.tolist(), strict=True)]
            for index, value in zip(top.indices, top.values, strict=True)
        ]
        return rows[0] if one else rows

    def _scores(self, clips: Tensor, head: str, num_chunks: int | None) -> Tensor:
        known = ["fusion", "student"] if self.bundle.heads is not None else []
        known += ["probe"] if "probe" in self.bundle.folders else []
        if head not in known:
            raise UserError(f"head {head!r} is not in this bundle; it has {', '.join(known) or 'none'}")
        if head == "probe":
            assert self._probe is not None
            seen = self._chunks(clips, num_chunks)
            return self._probe(seen.tokens, seen.valid).cpu()
        assert self.bundle.heads is not None
        return self.bundle.heads(self._with_budget(num_chunks)(clips).pooled.float())[head].cpu()

    def index(
        self, videos: Sequence[str | Path], out: str | Path, space: str | None = None, metric: str = "cosine"
    ) -> Index:
        """`index_videos` in a space (`language` can be asked with sentences): ids are paths; what can't be read is left
        out with a warning; an older index in `out` is replaced."""
        name = space or self.student
        self._check_space(space, tokens=False)
        return index_videos(partial(self.encode, space=space), videos, Path(out), self.bundle, name, metric)

    @torch.no_grad()
    def nearest(
        self, query: Video, store: FeatureStore | Index | str | Path, space: str | None = None, k: int = 10
    ) -> list[Neighbour]:
        """The k clips of a feature store, or of an index, that are most like the query in `space`.

        Of a store: its own features of that space where it holds them, so that a store of a teacher can be asked with
        the student's translation; else its student's, translated too. An index is asked by its own metric, in its own
        space unless another is named. A query that is a vector (D,) is taken as it is: one of `embed_text` finds clips
        by words.
        """
        found = open_store(store)
        name = space or (self.student if isinstance(found, FeatureStore) else str(found.about["space"]))
        if isinstance(found, Index) and name == found.about["space"]:
            self._check_backbone(name, found.about["backbone"], str(found.folder))
        rows = None if isinstance(found, Index) else self.features(found, name)
        return neighbours(found, rows, self._vector(query, name), name, k)

    def _vector(self, query: Video, space: str) -> Tensor:
        if isinstance(query, list | tuple):
            raise UserError("one query at a time")
        if isinstance(query, Tensor | np.ndarray) and query.ndim == 1:
            return torch.as_tensor(query).detach().float().cpu()
        return self.encode(query, space)

    def features(self, store: FeatureStore | str | Path, space: str | None = None) -> Float[Tensor, "n E"]:
        """All clips of a store in a space: its own features where it holds them, else its student's translated.
        UserError where they were made by other weights than this bundle's."""
        found = store if isinstance(store, FeatureStore) else FeatureStore(store)
        name = space or self.student
        served = self.bundle.converters is not None and name in self.bundle.converters.dims
        own = name if name in found.spaces or not served else self.student
        if own not in found.spaces:
            raise UserError(f"{found.path} holds no space {name}{did_you_mean(name, found.spaces)}")
        self._check_backbone(own, found.spaces[own], str(found.path))
        key = (found.fingerprint, name)
        if key not in self._kept:
            rows = found.features(own)
            self._kept = {key: rows if own == name else self.translate(rows, name)}
        return self._kept[key]

    def _check_backbone(self, space: str, backbone: dict[str, Any], where: str) -> None:
        """UserError where the features of `where` were made by other weights than this bundle knows."""
        known = self.bundle.spaces.get(space)
        if known is not None:
            check_space(known, backbone, space, Path("the bundle"), where)

    def _check_space(self, space: str | None, tokens: bool) -> None:
        known = list(self.spaces)
        if tokens:
            known = [self.student, *(self.bundle.tokens.dims if self.bundle.tokens is not None else [])]
        if space is not None and space not in known:
            what = "tokens of space" if tokens else "space"
            raise UserError(f"{what} {space!r} is not served here{did_you_mean(space, known)}; {', '.join(known)} are")

    def prepare(self, videos: Sequence[Video]) -> Float[Tensor, "B T H W 3"]:
        """Videos as the student takes them in: frames sampled, resized, cropped, normalised."""
        return prepare_videos(videos, self.bundle.card.plan, self.bundle.sampling).to(self.device)

    @torch.no_grad()
    def look(self, video: Video, num_chunks: int | None = None) -> tuple[UInt8[np.ndarray, "T H W 3"], ChunkMap]:
        """The frames as the student sees them (sampled, resized, cropped), and which of its tokens each cell belongs
        to. A student that does not choose has a token a cell."""
        clips = self.prepare([video])
        plan = self.bundle.card.plan
        levels = ((clips[0].cpu() * torch.tensor(plan.std) + torch.tensor(plan.mean)) - plan.offset) / plan.scale
        frames = levels.round().clamp(0, 255).to(torch.uint8).numpy()
        return frames, self.chunk_maps(clips, num_chunks)[0]

    @torch.no_grad()
    def chunk_maps(self, clips: Float[Tensor, "B T H W 3"], num_chunks: int | None = None) -> list[ChunkMap]:
        """Which token each cell belongs to, of clips as `prepare` gives them. UserError where `num_chunks` asks a
        student to choose that does not."""
        backbone = self._with_budget(num_chunks)
        if not isinstance(backbone, HouseBackbone):
            return [tubelets(self.bundle.card.grid)] * len(clips)
        return chunk_maps(backbone.encoded(clips.to(self.device)))

    @property
    def chooses(self) -> bool:
        """Whether the student chooses its tokens."""
        return isinstance(self.backbone, HouseBackbone) and isinstance(self.backbone.encoder, HNetViT)

    def _with_budget(self, num_chunks: int | None) -> Any:
        if num_chunks is None:
            return self.backbone
        if not self.chooses:
            raise UserError(f"num_chunks {num_chunks}: {self.student} does not choose its tokens")
        assert isinstance(self.backbone, HouseBackbone)
        return HouseBackbone(self.backbone.encoder, num_chunks)

    def _chunks(self, clips: Tensor, num_chunks: int | None) -> Encoded:
        """What language and probe were trained on: the student's own tokens."""
        backbone = self._with_budget(num_chunks)
        assert isinstance(backbone, HouseBackbone)
        return backbone.encoded(clips)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_bundle(self.bundle, Path(save_directory))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "PolySpace":
        """`model_id`: a folder, or a repository of the hub; `student` and `device` as in `load`."""
        hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
        local = Path(model_id).is_dir()
        if not local and (Path(model_id).is_absolute() or model_id.startswith((".", "~")) or model_id.count("/") > 1):
            raise UserError(f"{model_id} is not a folder")
        folder = Path(model_id) if local else Path(snapshot_download(model_id, **hub))
        return load(folder, **options)


def load(
    folder: str | Path, *, student: str | None = None, device: str = "auto", num_chunks: int | None = None
) -> PolySpace:
    """A bundle's folder, or that of a main.py run (its encoder, and language and probe where it has them).

    `student`: where the bundle's student lies, if not where it was; `num_chunks`: a run's budget of tokens, for every
    call. UserError for a folder that is neither, a damaged file, or a bundle of a newer release.
    """
    place = Path(folder).expanduser()
    if (place / "bundle.json").is_file():
        bundle = load_bundle(place, student)
        if num_chunks is not None:
            raise UserError("a bundle keeps the budget it was made with; give num_chunks to single calls")
    elif place.is_dir():
        bundle = gather(run=place, student=student, num_chunks=num_chunks)
    else:
        raise UserError(f"{place} is not a folder")
    return PolySpace(bundle, device)
