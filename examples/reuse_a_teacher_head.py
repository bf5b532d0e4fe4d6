"""A classifier that was built on a teacher's features, used without the teacher.

    python examples/reuse_a_teacher_head.py --bundle bundle --space videomae \\
        --train features/features_hmdb51_train.json --test features/features_hmdb51_validation.json

A logistic regression is fitted on the teacher's true features and then read on the student's translations; beside it
stand its score on true features, and chance.
"""

import argparse

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import polyspace
from polyspace.data.feature_store import FeatureStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--space", required=True, help="the teacher")
    parser.add_argument("--train", required=True, help="feature store with the teacher's true features")
    parser.add_argument("--test", required=True, help="feature store of other clips, with the student's features")
    args = parser.parse_args()
    ps = polyspace.load(args.bundle)
    train, test = FeatureStore(args.train), FeatureStore(args.test)
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    head.fit(train.features(args.space).numpy(), train.labels().numpy())
    labels = test.labels()
    translated = ps.translate(ps.features(test), args.space)  # checked: of this student's weights
    print(f"chance {1 / len(labels.unique()):.3f}")
    print(f"true features of {args.space}: {head.score(test.features(args.space).numpy(), labels.numpy()):.3f}")
    print(f"translated from {test.student}: {head.score(translated.numpy(), labels.numpy()):.3f}")


if __name__ == "__main__":
    main()
