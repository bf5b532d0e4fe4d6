"""Where an encoder's chunks lie: a picture of a clip with the outlines of its tokens, at several budgets.

python examples/look_at_chunks.py clip.mp4 --run outputs --out chunks.png
"""

import argparse
from pathlib import Path

import polyspace
from polyspace.report.chunk_figures import chunks_figure
from polyspace.report.figures import save_figure
from polyspace.utils.looks_file import Looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip")
    parser.add_argument("--run", default="outputs", help="folder of a main.py run, or of a bundle")
    parser.add_argument("--budgets", type=int, nargs="+", default=[48, 24])
    parser.add_argument("--out", type=Path, default=Path("chunks.png"))
    args = parser.parse_args()
    ps = polyspace.load(args.run, device="cpu")
    frames, chunks = ps.look(args.clip)
    maps = {"chunks (by content)": [chunks]}
    maps |= {f"chunks (of {n})": [ps.look(args.clip, num_chunks=n)[1]] for n in args.budgets}
    for way, (one,) in maps.items():
        print(f"{way}: {one.tokens} tokens for {one.owner.size} cells")
    print(save_figure(chunks_figure(Looks(frames[None], maps)), args.out))


if __name__ == "__main__":
    main()
