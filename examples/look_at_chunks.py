"""Where an encoder's chunks lie: a picture of a clip with the outlines of its tokens, at several budgets.

python examples/look_at_chunks.py clip.mp4 --run outputs --out chunks.png
"""

import argparse
from pathlib import Path

import polyspace
from polyspace.models.vjepa.vit import HNetViT
from polyspace.report.chunk_figures import Look, chunks_figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip")
    parser.add_argument("--run", default="outputs", help="folder of a main.py run, or of a bundle")
    parser.add_argument("--budgets", type=int, nargs="+", default=[48, 24])
    parser.add_argument("--out", type=Path, default=Path("chunks.png"))
    args = parser.parse_args()
    ps = polyspace.load(args.run, device="cpu")
    encoder = getattr(ps.backbone, "encoder", None)
    if not isinstance(encoder, HNetViT):
        raise SystemExit(f"the student of {args.run} does not choose its tokens")
    video = ps.prepare([args.clip])
    seen = {"by content": encoder(video)} | {f"of {n}": encoder(video, num_chunks=n) for n in args.budgets}
    looks = []
    for name, features in seen.items():
        owner = features.assignment.argmax(-1).view(1, *features.grid)  # the chunk that a cell belongs to most
        looks.append(Look(f"chunks ({name})", owner, features.num_chunks))
        print(f"{name}: {features.num_chunks.item()} tokens for {owner.numel()} cells")
    print(chunks_figure(video, looks, args.out))


if __name__ == "__main__":
    main()
