"""What is left of a teacher when the student stands in for it: heads made for its true features, on translated ones."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polyspace.data.feature_store import FeatureStore
from polyspace.models.backbones import BackboneCard
from polyspace.models.spaces.converters import ConverterBank
from polyspace.train.probing import LinearProbe, Part, fit_linear_probe
from polyspace.utils.holdout import hold_out
from polyspace.utils.metrics import bootstrap_interval, top_k_hits


def retained_table(
    train: FeatureStore, scored: FeatureStore, bank: ConverterBank, holdout: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Per space, top-1 of linear probes on `scored`: `true` fitted on true features and read on true ones, `translated`
    the same probe read on translated ones, `retrained` fitted on translated ones; `retained` is translated/true (None
    where `true` is not above always naming the largest class, paired over clips: there is nothing to retain), and
    `loss` the paired difference true − translated with its 95 % bootstrap interval. The student's own probe stands
    first. Penalties are chosen on the converters' held-out part of train.
    """
    labels = train.labels()
    held = hold_out(train.groups, labels.tolist(), holdout["share"], holdout["seed"])
    test = torch.tensor([-1 if clip["label"] is None else clip["label"] for clip in scored.manifest["clips"]])
    rows, classes = test >= 0, len(train.classes)

    def probe(x: Tensor) -> LinearProbe:
        return fit_linear_probe(Part(x[~held], labels[~held]), Part(x[held], labels[held]), classes)

    def hits(fitted: LinearProbe, x: Tensor) -> Tensor:
        return top_k_hits(fitted(x[rows]), test[rows], 1)

    x_train, x_test = train.features(train.student), scored.features(scored.student)
    own = hits(probe(x_train), x_test)
    constant = (test[rows] == labels[~held].mode().values).double()
    out: dict[str, dict[str, Any]] = {f"{train.student} (student)": {"true": own.mean().item()}}
    for name in bank.dims:
        with torch.inference_mode():
            guess_train, guess_test = bank[name](x_train).clone(), bank[name](x_test).clone()
        fitted, y_test = probe(train.features(name)), scored.features(name)
        true, translated = hits(fitted, y_test), hits(fitted, guess_test)
        retrained = hits(probe(guess_train), guess_test)
        entry: dict[str, Any] = {"true": true.mean().item(), "translated": translated.mean().item()}
        entry |= {
            "retrained": retrained.mean().item(),
            "retained": _share(translated, true, constant),
        }
        out[name] = entry | {"loss_ci": list(bootstrap_interval(true - translated))}
    return out


def _share(translated: Tensor, true: Tensor, constant: Tensor) -> float | None:
    above = bootstrap_interval(true - constant)[0] > 0
    return (translated.mean() / true.mean()).item() if above else None


def teacher_heads(
    cards: Mapping[str, BackboneCard], scored: FeatureStore, bank: ConverterBank
) -> dict[str, dict[str, Any]]:
    """Each teacher's own classifier, where its checkpoint has one, on true and on translated features.

    `agreement`: share of the clips that get the same class from both, with a 95 % bootstrap interval; `by_chance`: what
    independent answers as frequent as these would give. Where the head knows all classes of the data set (names
    compared without case, brackets and underscores) also top-1 of both against the labels, and the interval of the
    paired difference true − translated.
    """
    labels = torch.tensor([-1 if clip["label"] is None else clip["label"] for clip in scored.manifest["clips"]])
    rows, out = labels >= 0, {}
    for name in bank.dims:
        head = cards[name].classifier()
        if head is None:
            continue
        with torch.inference_mode():
            true = head.linear(scored.features(name)).argmax(1)
            translated = head.linear(bank[name](scored.features(scored.student))).argmax(1)
        same = (true == translated).double()
        shares = [torch.bincount(x, minlength=len(head.names)) / len(x) for x in (true, translated)]
        entry: dict[str, Any] = {"classes": len(head.names), "agreement": same.mean().item()}
        entry |= {"agreement_ci": list(bootstrap_interval(same)), "by_chance": (shares[0] @ shares[1]).item()}
        places = {_plain(n): k for k, n in enumerate(head.names)}
        if rows.any() and all(_plain(n) in places for n in scored.classes):
            wanted = torch.tensor([places[_plain(n)] for n in scored.classes])[labels[rows]]
            right = [(x[rows] == wanted).double() for x in (true, translated)]
            entry |= {"true": right[0].mean().item(), "translated": right[1].mean().item()}
            entry |= {"loss_ci": list(bootstrap_interval(right[0] - right[1]))}
        out[name] = entry
    return out


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("[", "").replace("]", "").replace("_", " ").split())
