"""`polyspace search`: the clips of an index that are most like a video, or like a sentence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

import polyspace
from polyspace.api import LANGUAGE
from polyspace.bundle.search import open_store
from polyspace.config import Config, parse, run_command
from polyspace.data.index import Index
from polyspace.utils.checkpoint_io import write_sealed
from polyspace.utils.errors import UserError
from polyspace.utils.log import say, table
from polyspace.utils.run_info import run_info


class SearchConfig(Config):
    bundle: Path = Field(description="folder of a bundle, or of a main.py run")
    index: Path = Field(description="folder of an index, or features_….json")
    text: list[str] = Field([], description="sentences to search for (an index of the space language)")
    videos: list[Path] = Field([], description="videos to search for")
    space: str | None = Field(None, description="for a feature store: the space to compare in")
    k: int = Field(5, ge=1, description="clips a query")
    verify: bool = Field(True, description="compare the index's files with their sha256 first")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    out: Path | None = Field(None, description="JSON file of all that is found")


def search(config: SearchConfig) -> list[dict[str, Any]]:
    """A row for each query in order: `query`, and `found` with `id` and `score`, best first."""
    if not config.text and not config.videos:
        raise UserError("give --text or --videos to search for")
    ps = polyspace.load(config.bundle, device=config.device)
    store = open_store(config.index)
    if config.text and (not isinstance(store, Index) or store.about["space"] != LANGUAGE):
        raise UserError(f"--text: {config.index} is no index of the space {LANGUAGE}; polyspace index makes one")
    if config.verify and isinstance(store, Index):
        store.verify()
    queries: list[tuple[str, Any]] = [(text, ps.embed_text(text)) for text in config.text]
    queries += [(str(path), path) for path in config.videos]
    rows = []
    for name, query in queries:
        found = ps.nearest(query, store, config.space, config.k)
        rows.append({"query": name, "found": [{"id": clip.id, "score": clip.score} for clip in found]})
    return rows


def main(argv: Sequence[str]) -> int:
    config = parse(
        SearchConfig,
        argv,
        prog="polyspace search",
        about="The clips of an index that are most like a sentence or a video.",
        example='polyspace search --bundle bundle --index indexes/language --text "a red square" --k 5',
    )
    rows = search(config)
    for row in rows:
        say(f"\n{row['query']}")
        for line in table([[clip["id"], f"{clip['score']:.3f}"] for clip in row["found"]], ["clip", "likeness"]):
            say(line)
    if config.out is not None:
        write_sealed(config.out, {"queries": rows, "run": run_info("search", config)})
        say(f"-> {config.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
