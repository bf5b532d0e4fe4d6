"""Features of a clip in every space that one student serves.

    python examples/encode_a_clip.py clip.mp4 --bundle bundle

`--bundle` is a folder of `polyspace bundle`, or of a main.py run (then there is the student's space, and language).
"""

import argparse

import polyspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--bundle", default="outputs")
    parser.add_argument("--num_chunks", type=int, help="a budget of tokens, where the student chooses them")
    args = parser.parse_args()
    ps = polyspace.load(args.bundle)
    for space, dim in ps.spaces.items():
        x = ps.encode(args.clips, space=space, num_chunks=args.num_chunks)
        print(f"{space}: {dim} dims; first clip starts {[round(v, 3) for v in x[0, :4].tolist()]}")
    if ps.classes:
        for clip, top in zip(args.clips, ps.classify(args.clips, k=3), strict=True):
            print(clip, ", ".join(f"{name} {chance:.2f}" for name, chance in top))


if __name__ == "__main__":
    main()
