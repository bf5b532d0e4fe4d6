"""Do the tests notice? Plants one fault at a time in a copy of the project and runs the tests that should fail.

python tests/faults.py            all faults; exit code 1 if any goes unnoticed
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
MODELS = "tests/models"
HNET = " ".join(
    f"{MODELS}/test_{part}.py" for part in ("hidden", "hnet_vit", "routing", "downsampler", "column_resnet")
)
STEP = " ".join(f"tests/train/vjepa/test_{part}.py" for part in ("jepa", "masking", "questions", "watch"))
# what is wrong -> (file, right, wrong, tests)
FAULTS = {
    "progress of an index written down before its data": (
        "train/alignment/conversion.py",
        "self.target.sync()\n        self.record(done, sha256)",
        "self.record(done, sha256)\n        self.target.sync()",
        "tests/train/test_index_resuming.py",
    ),
    "blocks of an index overlap": (
        "train/alignment/conversion.py",
        "min(start + block, rows)\n",
        "min(start + block + 1, rows)\n",
        "tests/train/test_index_commands.py",
    ),
    "EMA off": (
        "models/ema.py",
        "targets, sources, 1 - decay",
        "targets, sources, 0.0",
        f"{STEP} {MODELS}/test_layers.py",
    ),
    "EMA in bf16": (
        "models/ema.py",
        "copy.deepcopy(model).float()",
        "copy.deepcopy(model)",
        f"{MODELS}/test_layers.py",
    ),
    "mask ignored by the encoder": (
        "train/vjepa/jepa.py",
        "video, masks.hidden, budget, regions",
        "video, None, budget, regions",
        STEP,
    ),
    "hidden frames not blanked": (
        "models/hnet/column_resnet.py",
        "transpose(1, 2).reshape(-1, t, 1), 0)",
        "transpose(1, 2).reshape(-1, t, 1), 0) * 0 + columns",
        HNET,
    ),
    "convolution sees the next frame": (
        "models/hnet/column_resnet.py",
        "torch.cat([x[:, :1]] * (frames - 1) + [x], 1)",
        "torch.cat([x[:, :1]] * (frames - 2) + [x, x[:, -1:]], 1)[:, :x.shape[1] + frames - 1]",
        HNET,
    ),
    "padding attended to": (
        "models/layers.py",
        "torch.where(key_padding_mask, torch.finfo(dtype).min, bias)",
        "torch.where(key_padding_mask, bias, bias)",
        MODELS,
    ),
    "merge forgets the content": (
        "models/hnet/downsampler.py",
        "/ self.temperature",
        "* 0",
        HNET,
    ),
    "assignment not normalised": (
        "models/hnet/routing.py",
        "(1 - self.share)[..., None]",
        "self.share[..., None]",
        HNET,
    ),
    "pooling sums instead of averaging": (
        "models/hnet/downsampler.py",
        "/ total[..., None]",
        "+ 0 * total[..., None]",
        HNET,
    ),
    "target joins places": (
        "train/vjepa/jepa.py",
        "encoder.encode(video, regions=False, capped=False, layers=layers)",
        "encoder.encode(video, layers=layers)",
        STEP,
    ),
    "regions join whatever touches": (
        "models/hnet/routing.py",
        "edges.there & (edges.alike > self.gate.bound)",
        "edges.there",
        MODELS,
    ),
    "merging takes no account of sizes": (
        "models/hnet/budget.py",
        "(n * m / (n + m).clamp_min(1)).sqrt() * apart",
        "apart",
        f"{MODELS}/test_budget.py",
    ),
    "costs of what has grown are not looked at again": (
        "models/hnet/budget.py",
        "stale = live & (grown.gather(1, a) | grown.gather(1, b))",
        "stale = live & False",
        f"{MODELS}/test_budget.py",
    ),
    "patches are projected with their channels last": (
        "models/backbones/fused.py",
        "x.permute(0, *patches, 1, *inside)",
        "x.permute(0, *patches, *inside, 1)",
        f"{MODELS}/test_fused.py",
    ),
    "a budget's cuts weigh by the gate's doubt": (
        "models/hnet/routing.py",
        "torch.where(boundary, prob, 1).gather(1, head)",
        "prob.gather(1, head)",
        f"{MODELS}/test_routing.py",
    ),
    "regions join over a moment": (
        "models/hnet/regions.py",
        "shared >= overlap * union",
        "shared > 0",
        MODELS,
    ),
    "target from the last layer alone": (
        "models/vjepa/trunk.py",
        "for y in every[-layers:]",
        "for y in every[-1:]",
        HNET,
    ),
    "target without its norm": (
        "train/vjepa/questions.py",
        "every = F.layer_norm(every, every.shape[-1:])",
        "every = every * 1.0",
        STEP,
    ),
    "gradient into the target": (
        "losses/energy.py",
        "    y = y.detach()\n",
        "",
        "tests/losses",
    ),
    "horizon ignored": ("train/vjepa/masking.py", "hidden & (step < seen + self.horizon)", "hidden", STEP),
    "mask depends on the rank": (
        "train/vjepa/masking.py",
        "_generator(seed, step, i)",
        "_generator(seed, step, i - indices[0])",
        STEP,
    ),
    "still chunks outweigh moving ones": (
        "train/vjepa/questions.py",
        "hidden_weight = hidden_weight * share",
        "hidden_weight = hidden_weight * 1.0",
        STEP,
    ),
    "visible cells weigh alike whatever their distance": (
        "train/vjepa/questions.py",
        "out.append(gap.clamp_min(1).rsqrt())",
        "out.append(torch.ones_like(gap))",
        STEP,
    ),
    "identical frames can be cut": (
        "models/hnet/gate.py",
        "return theta - (theta - HIGHEST).clamp_min(0).detach()",
        "return theta",
        HNET,
    ),
    "weights by chunk never fade out": (
        "train/vjepa/jepa.py",
        "max(0.0, 1 - step / (s.chunk_weight_until * s.total_steps))",
        "1.0",
        STEP,
    ),
    "a position as loud as it likes": (
        "models/hnet/pos_enc.py",
        "(1 + 2 * x.square().mean(-1, keepdim=True)).rsqrt()",
        "1.0",
        HNET,
    ),
    "positions not centred in the variance": (
        "losses/vicreg.py",
        "torch.where(keep[..., None], z - mean, 0)",
        "torch.where(keep[..., None], z, 0)",
        "tests/losses",
    ),
    "ratio loss at half its target": (
        "losses/auxiliaries.py",
        "(ratio - 1) * share.detach()",
        "ratio * share.detach()",
        "tests/losses",
    ),
    "selection takes the worst blocks": (
        "models/hnet/block_rows.py",
        "logits.softmax(-1).mean(1).topk(",
        "(-logits.softmax(-1).mean(1)).topk(",
        f"{MODELS}/test_sparse_attention.py",
    ),
    "a block's surroundings keep hidden cells": (
        "models/hnet/block_rows.py",
        "(slots < 0).byte()",
        "(slots >= 0).byte()",
        f"{MODELS}/test_sparse_attention.py",
    ),
    "queries in another code than the context": (
        "models/vjepa/predictor.py",
        "sincos_code(query_places, self.width)",
        "sincos_code(query_places + 1, self.width)",
        STEP,
    ),
    "world model sees the next frame": (
        "models/action.py",
        "later = k[None] > q[:, None]",
        "later = k[None] > q[:, None] + 1",
        f"{MODELS}/test_action.py",
    ),
    "actions are not heard": (
        "models/action.py",
        "x = block(fuser(x, actions)",
        "x = block(fuser(x, actions * 0)",
        f"{MODELS}/test_action.py",
    ),
    "a rollout looks at the truth": (
        "models/action.py",
        "known = torch.cat([known, out[-1]], 1)",
        "known = torch.cat([known, known[:, -1:]], 1)",
        f"{MODELS}/test_action.py",
    ),
    "clips of one caption are negatives": (
        "losses/contrastive.py",
        "left_out = left_out | (alike",
        "left_out = left_out | (alike & False",
        "tests/losses/test_contrastive.py",
    ),
    "padding weighs in a probe": (
        "models/heads.py",
        "even = valid.to(tokens.dtype)",
        "even = torch.ones_like(valid).to(tokens.dtype)",
        f"{MODELS}/test_heads.py",
    ),
    "blocks of a ring are averaged": (
        "utils/attention_blocks.py",
        "torch.sigmoid(part_lse - lse))",
        "0.5)",
        "tests/utils/test_ring_attention.py",
    ),
    "gradients of keys don't come home": (
        "utils/ring_attention.py",
        "else -way * far, ring.group",
        "else -way, ring.group",
        "tests/utils/test_ring_attention.py",
    ),
    "zigzag sees the other half": (
        "utils/ring.py",
        "False) if holder < rank else (slice(length // 2, None)",
        "False) if holder > rank else (slice(length // 2, None)",
        "tests/utils/test_ring_attention.py",
    ),
    "ranks without padding of their own see others'": (
        "models/vjepa/trunk.py",
        "self._run(x, (key_padding_mask, key_bias, context), layers)",
        "self._run(x, (None, key_bias, context), layers)",
        "tests/utils/test_ring_attention.py",
    ),
    "ties count as found": (
        "utils/metrics.py",
        "better = (logits >= own).sum(1) - 1",
        "better = (logits > own).sum(1)",
        "tests/utils/test_small.py",
    ),
    "a planner ignores its elites": (
        "planning/cem.py",
        "mean = (weight * elites).sum(1)",
        "mean = actions.mean(1)",
        "tests/planning/test_cem.py",
    ),
}


def fails(tests: str, file: str = "", right: str = "", wrong: str = "") -> bool:
    """True when these tests fail in a copy of the project, with `wrong` in the place of `right` if a file is given."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy"
        shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(".git", ".venv", "outputs", "*.pyc"))
        if file:
            path = copy / "polyspace" / file
            text = path.read_text()
            if text.count(right) != 1:
                raise SystemExit(f"{file}: {right!r} stands there {text.count(right)} times, not once")
            path.write_text(text.replace(right, wrong))
        line = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
        environment = os.environ | {"PYTHONPATH": str(copy)}
        return subprocess.run(line, cwd=copy, env=environment, capture_output=True).returncode == 1


def main() -> int:
    for tests in sorted({fault[-1] for fault in FAULTS.values()}):
        if fails(tests):
            raise SystemExit(f"{tests} fails without any fault")
    missed = 0
    for name, (file, right, wrong, tests) in FAULTS.items():
        seen = fails(tests, file, right, wrong)
        missed += not seen
        sys.stdout.write(f"{'noticed ' if seen else 'MISSED  '} {name}\n")
        sys.stdout.flush()
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
