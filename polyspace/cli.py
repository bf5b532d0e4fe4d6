"""`polyspace VERB …`: every command of the package, the same code that `python -m …` runs."""

import importlib
import sys
from collections.abc import Sequence

from polyspace.version import __version__

# verb -> (module with main(argv), what it does); modules are imported when their verb is called
VERBS = {
    "synth": ("polyspace.data.synthetic", "write generated clips in an official data set layout"),
    "featurize": ("polyspace.data.featurize", "videos -> feature store of a student and its teachers"),
    "train-converter": ("polyspace.train.train_converter", "fit converters from the student's space to the teachers'"),
    "export-index": ("polyspace.train.export_index", "a feature store's vectors of one space -> a feature index"),
    "convert-index": ("polyspace.train.convert_index", "a feature index into a teacher's space, however large"),
    "train-fusion": ("polyspace.train.train_fusion", "train the fusion head and its student-only control"),
    "eval": ("polyspace.train.eval_downstream", "accuracy, translation quality and cost on a split"),
    "train": ("polyspace.train.run", "train H-Net V-JEPA phase by phase (main.py)"),
    "fit": ("polyspace.train.fit_videos", "your own videos through the phases that make sense, with a report"),
    "collect": ("polyspace.train.collect_episodes", "record episodes in the Push-T simulator for the action phase"),
    "bundle": ("polyspace.bundle.gather", "student, converters and heads in one folder that polyspace.load reads"),
    "export": ("polyspace.bundle.export", "a bundle's encoder as a torch.export program, its converters as ONNX"),
    "labels-curve": ("polyspace.train.labels_curve", "fusion and student only on shares of the labels, over seeds"),
    "index": ("polyspace.commands.index", "videos -> a feature index of any space that a bundle serves"),
    "search": ("polyspace.commands.search", "the clips of an index most like a sentence or a video"),
    "report": ("polyspace.commands.report", "one page of all that lies in a folder, with pictures"),
    "overlay": ("polyspace.commands.overlay", "a video with the encoder's chunks drawn over a clip's frames"),
    "app": ("polyspace.commands.app", "a page in the browser: chunks, neighbours, classes, search, planning"),
    "demo": ("polyspace.commands.demo", "the whole job on generated clips, with a report"),
    "make-backbones": ("polyspace.train.embedded.make", "train the demo's five small backbones from nothing"),
    "doctor": (
        "polyspace.doctor",
        "what is installed and missing here; with --dataset, near-duplicates between splits",
    ),
}


def usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb.ljust(width)}  {about}" for verb, (_, about) in VERBS.items()]
    return "\n".join(["usage: polyspace VERB [flags]   (polyspace VERB --help for its flags)", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage() + "\n")
        return 0
    if args[0] in ("-V", "--version"):
        sys.stdout.write(f"polyspace {__version__}\n")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        from polyspace.utils.errors import did_you_mean

        sys.stderr.write(f"error: unknown verb '{verb}'{did_you_mean(verb, VERBS)}\n")
        return 2
    from polyspace.config import run_command

    return run_command(importlib.import_module(VERBS[verb][0]).main, rest)


if __name__ == "__main__":
    raise SystemExit(main())
