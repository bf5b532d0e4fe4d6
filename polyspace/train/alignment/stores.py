"""Feature stores for the commands that train and evaluate heads: found by fingerprint, or made once into a cache."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyspace.data.feature_store import FeatureStore, find_store
from polyspace.data.featurize import FeaturizeConfig, SourceConfig, failure_code, featurize, open_source, store_settings
from polyspace.models.backbones import BackboneCard
from polyspace.models.spaces.converters import ConverterBank
from polyspace.utils import distrib
from polyspace.utils.checkpoint_io import sha256_json
from polyspace.utils.errors import UserError
from polyspace.utils.log import say

_COMPARED = (
    ("dim", "dims"),
    ("backend", "backend"),
    ("digest", "weights"),
    ("pooling", "pooling"),
    ("plan", "frames or preprocessing"),
)
CACHE_BATCH = 2  # clips a forward when a command has to featurize by itself


def get_store(config: SourceConfig, features: Path, cache: Path) -> tuple[FeatureStore, dict[str, BackboneCard], int]:
    """The store of these clips and backbones in `features`, else in `cache`, else made there now; their cards; and 1
    if more clips than `max_failed` could not be read, else 0."""
    if distrib.world_size() > 1:
        raise UserError("this command runs in one process; start it without torchrun (featurize may use many)")
    data, cards = open_source(config)
    fingerprint = sha256_json(store_settings(config, data, cards))
    store = find_store([features, cache], data.name, data.split, fingerprint)
    if store is not None:
        say(f"features: {store.path} ({len(store)} clips, nothing to decode)")
        return store, cards, failure_code(store, config.max_failed)
    say(f"features: none in {features} fit these settings; featurizing once into {cache}")
    shared = {name: getattr(config, name) for name in SourceConfig.model_fields if name != "list_file"}
    made = FeaturizeConfig(**shared, list=config.list_file, out=cache, batch=CACHE_BATCH, overwrite=True)
    store = featurize(made, (data, cards))
    return store, cards, failure_code(store, config.max_failed)


def check_fit(bank: ConverterBank, about: dict, store: FeatureStore, path: Path) -> None:
    """Converters must have been fitted on this student and these spaces (same checkpoints, same widths)."""
    if about.get("tokens"):
        raise UserError(f"{path} converts tokens; this command needs converters of clip features")
    if about["student"] != store.student:
        raise UserError(f"{path} converts from {about['student']}, but the features' student is {store.student}")
    for name, fitted in about["spaces"].items():
        space = store.spaces.get(name)
        if space is None:
            raise UserError(f"{path} has a converter to {name}, which the features of {store.path} lack")
        check_space(fitted, space, name, path, str(store.path))


def check_space(fitted: Mapping[str, Any], found: Mapping[str, Any], name: str, path: Path, where: str) -> None:
    """The converters of `path` were fitted on the backbone that made the features of `where`."""
    for key, word in _COMPARED:
        if fitted[key] != found[key]:
            raise UserError(f"{path} was fitted on other {word} of {name} than {where} has")
