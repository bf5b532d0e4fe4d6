"""`polyspace app`: a page in the browser that shows what a bundle makes of a clip."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

import polyspace
from polyspace.config import Config, parse, run_command
from polyspace.explorer.page import import_gradio
from polyspace.explorer.server import is_loopback, serve, wait
from polyspace.explorer.session import Explorer
from polyspace.utils.log import say, warn

MEGABYTE = 1_000_000


class AppConfig(Config):
    bundle: Path = Field(description="folder of a bundle, or of a main.py run")
    index: list[Path] = Field([], description="folders of indexes and features_….json to find neighbours in")
    clips: Path | None = Field(None, description="folder of videos to pick from, and to find the indexes' clips in")
    run: Path | None = Field(None, description="folder of a main.py run with the action phase, for planning")
    host: str = Field("127.0.0.1", description="address to serve at; by default this machine alone sees the page")
    port: int = Field(7860, ge=0, le=65535, description="port; 0: a free one")
    max_upload_mb: int = Field(200, ge=1, description="largest video that can be dropped, in megabytes")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")


def main(argv: Sequence[str]) -> int:
    config = parse(
        AppConfig,
        argv,
        prog="polyspace app",
        about="A page in the browser: a clip's chunks, its neighbours in every space, classes, text search, planning.",
        example="polyspace app --bundle bundle --index indexes/language features/features_hmdb51_train.json",
    )
    import_gradio()  # before a model is loaded for nothing
    if not is_loopback(config.host):
        warn(
            f"--host {config.host}: whoever reaches this machine over the network can use the page and see the clips; "
            "there is no password"
        )
    run = config.run
    if run is None and not (config.bundle / "bundle.json").is_file() and (config.bundle / "action").is_dir():
        run = config.bundle
    explorer = Explorer(polyspace.load(config.bundle, device=config.device), config.index, config.clips, run)
    with serve(explorer, config.host, config.port, config.max_upload_mb * MEGABYTE) as address:
        say("Ctrl-C ends it. The page:")
        say(address)
        wait()
    say("closed")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
