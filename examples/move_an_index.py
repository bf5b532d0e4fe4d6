"""An index moved into a teacher's space, and asked as the teacher would ask it.

    python examples/move_an_index.py --features features/features_hmdb51_train.json \\
        --converters checkpoints/converters/converters_ep10.pt --space videomae --out indexes

The student's vectors are exported and converted without decoding a video. Then clips of the store are looked for by
their true features of the teacher, once among the teacher's own vectors and once among the moved ones.
"""

import argparse
from pathlib import Path

from polyspace.data.feature_store import FeatureStore
from polyspace.train.convert_index import ConvertConfig, convert_index
from polyspace.train.export_index import ExportConfig, export_index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", required=True, type=Path, help="feature store with the teacher's true features")
    parser.add_argument("--converters", required=True, type=Path)
    parser.add_argument("--space", required=True, help="the teacher")
    parser.add_argument("--out", type=Path, default=Path("indexes"))
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--k", type=int, default=10)
    args = parser.parse_args()
    store = FeatureStore(args.features)
    own = ExportConfig(features=args.features, space=store.student, out=args.out / store.student)
    true = ExportConfig(features=args.features, space=args.space, out=args.out / f"{args.space}_true")
    moved = ConvertConfig(index=own.out, converters=args.converters, space=args.space, out=args.out / args.space)
    export_index(own)
    ours, theirs = convert_index(moved), export_index(true)
    queries = store.features(args.space)[: args.queries]
    (_, found), (_, wanted) = (index.search(queries, args.k + 1) for index in (ours, theirs))
    shared = [
        len({*a.tolist()} & ({*b.tolist()} - {row})) / min(args.k, len(store) - 1)
        for row, (a, b) in enumerate(zip(found, wanted, strict=True))
    ]
    told = ours.about["translated"]["expected"]
    print(f"{sum(shared) / len(shared):.1%} of the {args.k} true neighbours are found in the moved index")
    print(f"(stated when it was made: {told['lost_variance']:.1%} of the variance lost, cosine {told['cosine']:.3f})")


if __name__ == "__main__":
    main()
