"""Where neighbours can be sought: each space that a given index or feature store serves to a bundle."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polyspace.api import LANGUAGE, PolySpace
from polyspace.bundle.search import open_store
from polyspace.data.feature_store import FeatureStore
from polyspace.data.index import Index

STAND_IN = "identity"


@dataclass(frozen=True)
class Source:
    """One space of one store, `place` in short; `about` says in a sentence what is compared."""

    space: str
    store: FeatureStore | Index
    place: str
    about: str
    stand_in: bool = False

    @property
    def name(self) -> str:
        """Tells sources apart."""
        return f"{self.space} · {self.place}"


def is_stand_in(ps: PolySpace, space: str) -> bool:
    """Whether a space's features come from the untrained stand-in, its own or the student's below it."""
    known = ps.bundle.spaces.get(space, {})
    return STAND_IN in (ps.bundle.card.backend, known.get("backend"))


def open_sources(ps: PolySpace, places: Sequence[Path]) -> tuple[list[Source], list[str], list[str]]:
    """Sources in the order of the bundle's spaces, sentences about stores that serve nothing here, and all ids."""
    found: list[Source] = []
    notes: list[str] = []
    ids: list[str] = []
    for place in places:
        store = open_store(place)
        ids += store.ids or []
        mine = _of_index(ps, store) if isinstance(store, Index) else _of_store(ps, store)
        taken = {source.name for source in found}
        found += [replace(source, place=str(place)) if source.name in taken else source for source in mine]
        if not mine:
            held = [store.about["space"]] if isinstance(store, Index) else list(store.spaces)
            notes.append(f"{place} holds {', '.join(held)}, which this bundle does not serve: it is left out.")
    order = list(ps.spaces)
    return sorted(found, key=lambda source: order.index(source.space)), notes, ids


def _of_index(ps: PolySpace, index: Index) -> list[Source]:
    space = str(index.about["space"])
    if space not in ps.spaces:
        return []
    translated = index.about["translated"]
    words = f"{index.rows} clips of an index, by {'cosine' if index.metric == 'cosine' else 'squared distance (l2)'}"
    if translated is not None:
        words += f"; its vectors are translated from {translated['from']}{_expected(translated.get('expected'))}"
    stand_in = bool(index.about["stand_in"]) or is_stand_in(ps, space)
    return [Source(space, index, f"index {index.folder.name}", words, stand_in)]


def _of_store(ps: PolySpace, store: FeatureStore) -> list[Source]:
    served = {} if ps.bundle.converters is None else ps.bundle.converters.dims
    out = []
    for space in ps.spaces:
        if space == LANGUAGE or not (space in store.spaces or (space in served and ps.student in store.spaces)):
            continue
        words = f"{len(store)} clips of a feature store, by cosine"
        if space != ps.student:
            whose = "the teacher's own features" if space in store.spaces else f"{ps.student}'s features, translated"
            words += f"; the query is translated{_expected(ps.bundle.held_out.get(space))}, the clips are {whose}"
        made_of = {space, ps.student} if space not in store.spaces else {space}
        stand_in = is_stand_in(ps, space) or bool(made_of & set(store.stand_ins))
        out.append(Source(space, store, store.path.stem, words, stand_in))
    return out


def _expected(held_out: dict[str, Any] | None) -> str:
    """How good the translation was on clips that were kept aside from its fit."""
    if not held_out or "r2" not in held_out:
        return ""
    return f" (R² {held_out['r2']:.2f} on held-out clips)"
