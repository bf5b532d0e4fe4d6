"""A classifier from a few labels a class: on the student's feature alone, and with every space that it serves.

    python examples/few_labels.py --bundle bundle --train features/features_hmdb51_train.json \\
        --test features/features_hmdb51_validation.json --labels 1 2 5

Which clips are labelled is drawn anew for each seed. `polyspace labels-curve` does the same with the fusion head, its
controls and intervals; here it is a logistic regression of three lines.
"""

import argparse

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import polyspace
from polyspace.data.feature_store import FeatureStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--train", required=True, help="feature store with the student's features")
    parser.add_argument("--test", required=True, help="the same of other clips")
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 2, 5], help="labelled clips a class")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    ps = polyspace.load(args.bundle)
    stores = [FeatureStore(path) for path in (args.train, args.test)]
    served = [name for name in ps.spaces if name != "language"]
    known = []  # of each store: the student's features, and what converters make of them (never the teachers' own)
    for store in stores:
        own = ps.features(store)
        known.append({n: (own if n == ps.student else ps.translate(own, n)).numpy() for n in served})
    labels = [store.labels().numpy() for store in stores]
    for count in args.labels:
        scores: dict[str, list[float]] = {"student alone": [], "all spaces": []}
        for seed in range(args.seeds):
            order = np.random.default_rng(seed).permutation(len(labels[0]))
            rows = np.concatenate([order[labels[0][order] == c][:count] for c in np.unique(labels[0])])
            for name, spaces in (("student alone", [ps.student]), ("all spaces", served)):
                x, y = (np.concatenate([part[space] for space in spaces], 1) for part in known)
                head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
                scores[name].append(head.fit(x[rows], labels[0][rows]).score(y, labels[1]))
        shown = ", ".join(f"{name} {np.mean(s):.3f} ± {np.std(s):.3f}" for name, s in scores.items())
        print(f"{count} a class: {shown} (top-1, {args.seeds} seeds)")


if __name__ == "__main__":
    main()
