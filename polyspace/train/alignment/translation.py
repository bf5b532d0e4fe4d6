"""One converter of a file, with what the file says of it: whose features it reads, and how well it translates."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polyspace.models.spaces.converters import Converter, dims_of, load_converters
from polyspace.train.alignment.stores import check_space
from polyspace.utils.checkpoint_io import sha256_file
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.log import say, warn

SCORES = ("r2", "cosine", "knn_overlap", "cka_debiased")


def held_out_scores(about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each space of a converters' file the scores of what was kept on clips that it was not fitted on, with the
    share of the space's variance that is lost; spaces without scores are left out."""
    out = {}
    for space, report in about.get("held_out", {}).items():
        scores = report.get("kinds", {}).get(about.get("kind"), {})
        if "r2" in scores:
            counts = {name: report[name] for name in ("fitted_on", "held_out", "scored_rows") if name in report}
            out[space] = {"lost_variance": 1 - scores["r2"], **{k: scores[k] for k in SCORES if k in scores}, **counts}
    return out


@dataclass(frozen=True)
class Translation:
    """The converter from `student` to `space` that stands in `path`."""

    path: Path
    space: str
    converter: Converter
    about: dict[str, Any]
    sha256: str

    @property
    def student(self) -> str:
        return self.about["student"]

    @property
    def dims(self) -> tuple[int, int]:
        """(d, e)."""
        return dims_of(self.converter)

    @property
    def stand_ins(self) -> list[str]:
        """Of student and space, those whose features come from the identity stand-in."""
        return [n for n in (self.student, self.space) if self.about["spaces"][n]["backend"] == "identity"]

    def check(self, student: str, backbone: Mapping[str, Any], where: str) -> None:
        """UserError unless the features of `where` come from the student that the converter was fitted on."""
        if student != self.student:
            raise UserError(f"{self.path} converts from {self.student}, but {where} holds features of {student}")
        check_space(self.about["spaces"][student], backbone, student, self.path, where)

    def expected(self) -> dict[str, Any] | None:
        """Scores on the clips that the converters' fit kept aside, and the share of the space's variance that is lost;
        None if the file holds no scores."""
        return held_out_scores(self.about).get(self.space)

    def describe(self) -> dict[str, Any]:
        """What `index.json` says of vectors that are translations."""
        return {
            "from": self.student,
            "backbone": self.about["spaces"][self.student],
            "kind": self.about.get("kind"),
            "converters": self.path.name,
            "converters_sha256": self.sha256,
            "fitted_on_features": self.about.get("fingerprint"),
            "expected": self.expected(),
        }

    def head(self, rows: int, metric: str) -> dict[str, Any]:
        """What `index.json` says of the index."""
        return {
            "space": self.space,
            "dim": self.dims[1],
            "rows": rows,
            "metric": metric,
            "student": self.student,
            "backbone": self.about["spaces"][self.space],
            "stand_in": bool(self.stand_ins),
            "translated": self.describe(),
        }

    def say_expected(self) -> None:
        """The expected error in one line, and what it is not worth where stand-ins made it."""
        found = self.expected()
        if found is None:
            warn(f"{self.path} holds no held-out scores of {self.space}: the error to expect is unknown")
            return
        more = f", cosine {found['cosine']:.3f}" if "cosine" in found else ""
        more += f", {found['knn_overlap']:.1%} of the ten nearest neighbours shared" if "knn_overlap" in found else ""
        clips = f" ({found['held_out']} held-out clips)" if "held_out" in found else ""
        say(f"expected error: {found['lost_variance']:.1%} of the variance of {self.space}{more}{clips}")
        if self.stand_ins:
            say(f"(identity stand-ins: {', '.join(self.stand_ins)}; these numbers say nothing about those models)")


def open_translation(path: Path, space: str) -> Translation:
    """The converter to `space`; UserError for tokens, an unknown space, or a file without what a check needs."""
    bank, about = load_converters(path)
    if about.get("tokens"):
        raise UserError(f"{path} converts tokens; an index holds clip features")
    if space not in bank.dims:
        raise UserError(f"--space {space}: {path} has no converter to it{did_you_mean(space, bank.dims)}")
    spaces = about.get("spaces", {})
    if about.get("student") not in spaces or space not in spaces:
        raise UserError(f"{path} does not say what its student and {space} are; fit the converters again")
    converter = bank[space]
    if not all(bool(torch.isfinite(value).all()) for value in converter.state_dict().values()):
        raise UserError(f"{path}: the converter to {space} holds numbers that are not finite")
    if dims_of(converter) != (spaces[about["student"]]["dim"], spaces[space]["dim"]):
        raise UserError(f"{path}: the converter to {space} has dims {dims_of(converter)}, its spaces say others")
    return Translation(path, space, converter, about, sha256_file(path))
