"""What train-converter is told, and where its pairs come from: a feature store, or videos that are not stored."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from polyspace.data.feature_store import FeatureStore
from polyspace.data.featurize import SourceConfig, open_source, store_settings
from polyspace.train.alignment.gathering import Gathered, Gatherer
from polyspace.train.alignment.pairs import store_blocks, stream_blocks
from polyspace.train.settings import Track
from polyspace.utils.checkpoint_io import load_versioned, save_torch, sha256_json
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.holdout import hold_out
from polyspace.utils.log import say, warn

SAVE_EVERY_S = 300.0


class ConverterConfig(SourceConfig):
    dataset: str | None = Field(None, description="with --stream: the videos' data set")  # type: ignore[assignment]
    root: Path | None = Field(None, description="with --stream: its folder")  # type: ignore[assignment]
    features: Path | None = Field(None, description="feature store of the training split")
    stream: bool = Field(
        False, description="fit straight from videos and keep no features: for sets too large to store"
    )
    tokens: bool = Field(False, description="convert tokens instead of clip features (a store made with --tokens)")
    kind: Literal["residual_mlp", "ridge", "procrustes"] = Field(
        "residual_mlp", description="residual_mlp (ridge and a small network on top), ridge or procrustes"
    )
    d_in: int | None = Field(None, description="the student's width; a fact of the store, which wins")
    d_out: int | None = Field(None, description="the teachers' width; a fact of the store, which wins")
    loss: str = Field("l2=1", description="of the network: NAME=WEIGHT,… of l2 smooth_l1 cosine info_nce vicreg barlow")
    standardise: Literal["phi_s", "per_dim", "none"] = Field("phi_s", description="the teachers' spaces in the losses")
    hidden: int = Field(512, ge=1, description="width of the network")
    epochs: int = Field(10, ge=1, description="passes over the sampled rows; the best one on the held-out part is kept")
    batch: int = Field(128, ge=1, description="rows a step")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0, description="on the network's matrices")
    teacher_drop: float = Field(0.0, ge=0, lt=1, description="chance that a step leaves out a teacher; never the worst")
    rows: int = Field(100_000, ge=16, description="most rows that the network learns from, drawn at random")
    tokens_per_clip: int = Field(64, ge=1, description="random places of each clip, with --tokens")
    save_dir: Path = Field(Path("checkpoints/converters"), description="folder of the result")
    holdout: float = Field(0.2, gt=0, lt=1, description="share of source videos kept aside for choices and reports")
    seed: int = Field(0, ge=0, description="held-out videos, sampled rows, weights and order")
    track: Track = ("auto",)


class PairSource:
    """Where the pairs come from: what is said of them in files, and their one pass."""

    def __init__(self, config: ConverterConfig) -> None:
        self.config = config
        self.failed: list[tuple[str, str]] = []
        if config.stream == (config.features is not None):
            raise UserError("give either --features STORE, or --stream with --dataset and --root")
        if config.features is None:
            if config.dataset is None or config.root is None:
                raise UserError("--stream needs --dataset and --root")
            self.source = open_source(config)
            data, cards = self.source
            self.student, self.spaces = config.student, {name: card.about() for name, card in cards.items()}
            self.settings = store_settings(config, data, cards, config.tokens)
            self.fingerprint = sha256_json(self.settings)
            groups, labels = [r.group for r in data.records], [r.label for r in data.records]
        else:
            self.store = store = FeatureStore(config.features)
            check_spaces(store, config.teachers)
            if config.tokens and not store.manifest["settings"].get("tokens"):
                raise UserError(f"{store.path} holds no tokens; featurize with --tokens, or leave out --tokens here")
            names = (store.student, *config.teachers)
            self.student, self.spaces = store.student, {name: store.spaces[name] for name in names}
            self.settings, self.fingerprint = store.manifest["settings"], store.fingerprint
            groups, labels = store.groups, [clip["label"] for clip in store.manifest["clips"]]
        self.held = hold_out(groups, labels, config.holdout, config.seed)

    @property
    def stand_ins(self) -> list[str]:
        return [name for name, space in self.spaces.items() if space["backend"] == "identity"]

    def gather(self) -> dict[str, Gathered]:
        """One pass over the pairs. A stream's is written down every SAVE_EVERY_S seconds, and a killed one goes on from
        there to the same bits."""
        c = self.config
        grids = {name: tuple(space["grid"]) for name, space in self.spaces.items()} if c.tokens else None
        sizes = {"rows": c.rows, "tokens_per_clip": c.tokens_per_clip, "seed": c.seed}
        gatherer = Gatherer(self.student, c.teachers, grids, **sizes)
        if c.stream:
            self._stream(gatherer)
        else:
            for block in store_blocks(self.store, list(self.spaces), self.held, c.tokens):
                gatherer.add(block)
        found = gatherer.result()
        share = len(self.failed) / max(1, len(self.held))
        for clip, reason in self.failed[:20]:
            say(f"  failed: {clip}: {reason}")
        if share > c.max_failed:
            self.forget()  # what could not be read today may be there tomorrow
            raise UserError(f"{len(self.failed)} clips ({share:.1%}) could not be read, more than --max_failed")
        if any(part.fit.n < 2 or part.held.n < 1 for part in found.values()):
            raise UserError("too few clips can be read to fit a converter and keep some aside")
        return found

    def _stream(self, gatherer: Gatherer) -> None:
        done, saved = 0, time.monotonic()
        if self.passed.is_file():
            state = load_versioned(self.passed, "polyspace.stream", 1, "state of a stream")
            gatherer.load(state["gathered"])
            done, self.failed = state["done"], [(clip, reason) for clip, reason in state["failed"]]
            say(f"stream: going on behind {done} batches")

        def save() -> None:
            head = {"format": "polyspace.stream", "format_version": 1, "done": done, "failed": self.failed}
            save_torch(self.passed, head | {"gathered": gatherer.state()})

        for block in stream_blocks(self.config, self.source, self.held, self.config.tokens, self.failed, done):
            gatherer.add(block)
            done = block.done
            if time.monotonic() - saved >= SAVE_EVERY_S:
                save()
                saved = time.monotonic()
        save()  # a run killed while it trains decodes nothing again

    @property
    def passed(self) -> Path:
        """Where a stream's pass is written down, named by all that it depends on."""
        c = self.config
        depends = [self.fingerprint, c.teachers, c.holdout, c.seed, c.rows, c.tokens, c.tokens_per_clip]
        return c.save_dir / f"stream-{sha256_json(depends)[:12]}.pt"

    def forget(self) -> None:
        """The result is written: a pass that was written down is of no more use."""
        self.passed.unlink(missing_ok=True)


def check_spaces(store: FeatureStore, teachers: Sequence[str]) -> None:
    """Every teacher is a space of the store other than the student."""
    for name in teachers:
        if name == store.student:
            raise UserError(f"--teachers {name}: that is the student of {store.path}")
        if name not in store.spaces:
            raise UserError(f"--teachers {name} is not in {store.path}{did_you_mean(name, store.spaces)}")


def warn_widths(config: ConverterConfig, source: PairSource) -> None:
    """Widths are facts of the spaces: flags that say otherwise are named in one line."""
    d_in = source.spaces[source.student]["dim"]
    d_out = sorted({source.spaces[t]["dim"] for t in config.teachers})
    if config.d_in not in (None, d_in) or (config.d_out is not None and [config.d_out] != d_out):
        shown = "/".join(map(str, d_out))
        warn(f"--d_in {config.d_in} --d_out {config.d_out}: the store has {d_in} and {shown}, which are used")
