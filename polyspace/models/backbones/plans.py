"""How each architecture wants its pixels: documented defaults, overridden by the checkpoint's preprocessor config."""

from dataclasses import replace
from typing import Any

from polyspace.models.backbones.checkpoints import Checkpoint
from polyspace.utils.errors import UserError
from polyspace.utils.log import warn
from polyspace.utils.plan import Plan
from polyspace.utils.reading import reads

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
MOST = 1 << 14  # pixels a side of a resized frame
_MODES = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, as the config files hold them


def default_plan(name: str, config: Any, frames: int) -> Plan:
    """The architecture's documented preprocessing at this config's size.

    Only V-JEPA 2 takes the frames asked for (a whole number of tubelets); the others' counts are fixed by their
    position tables: a wrong count raises in VideoMAE and ViViT and runs with a wrong layout in TimeSformer.
    """
    if name == "vjepa2":
        if frames % config.tubelet_size:
            raise UserError(
                f"--frames {frames}: vjepa2 takes whole tubelets of {config.tubelet_size} and drops the rest"
            )
        side = config.crop_size
        return Plan(frames, side * 256 // 224, (side, side), *IMAGENET)
    side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    if name == "vivit":  # pixels to [−1, 1] in one step; its class would apply mean and std of ½ once more
        short = round(side * 256 / 224)
        return Plan(config.num_frames, short, (side, side), *PLAIN, scale=1 / 127.5, offset=-1.0)
    return Plan(config.num_frames, side, (side, side), *(HALF if name == "videomae" else IMAGENET))


def read_plan(name: str, config: Any, frames: int, found: Checkpoint) -> Plan:
    """The plan of a checkpoint: its preprocessor config where it has one, checked against the architecture."""
    base = default_plan(name, config, frames)
    file = found.json("video_preprocessor_config.json", "preprocessor_config.json")
    if file is None:
        return base
    with reads(f"{found.name}/preprocessor_config.json", "plan"):
        plan = plan_from_config(base, file, f"{found.name}/preprocessor_config.json")
    sizes = (plan.resize,) if isinstance(plan.resize, int) else plan.resize
    if len(plan.mean) != 3 or len(plan.std) != 3 or not all(plan.std) or not all(0 < s <= MOST for s in sizes):
        raise UserError(
            f"{plan.source}: a plan needs 3 means, 3 deviations other than 0, and sizes of 1 to {MOST} pixels"
        )
    if plan.crop != base.crop:
        got, fits = (f"{height}x{width}" for height, width in (plan.crop, base.crop))
        raise UserError(f"{plan.source}: a crop of {got} does not fit the model's {fits}")
    low, high = plan.range()
    if name == "vivit" and (low < -1.01 or high > 1.01):
        warn(f"{plan.source} would normalise twice (to {low:.2f}…{high:.2f}); pixels are mapped to −1…1 once")
        plan = replace(plan, mean=PLAIN[0], std=PLAIN[1], scale=base.scale, offset=base.offset)
    return plan


def plan_from_config(base: Plan, file: dict[str, Any], source: str) -> Plan:
    """`base` overridden by the keys of a preprocessor config; keys it lacks keep the architecture's value."""
    mean, std = file.get("image_mean", base.mean), file.get("image_std", base.std)
    if not file.get("do_normalize", True):
        mean, std = PLAIN
    scale, offset = file.get("rescale_factor", base.scale), base.offset
    if "offset" in file:
        offset = -1.0 if file["offset"] else 0.0
    if not file.get("do_rescale", True):
        scale, offset = 1.0, 0.0
    resize: int | tuple[int, int] = base.resize
    if file.get("size") is not None and file.get("do_resize", True):
        resize = _side(file["size"])
    crop = base.crop
    if file.get("crop_size") is not None and file.get("do_center_crop", True):
        side = _side(file["crop_size"])
        crop = side if isinstance(side, tuple) else (side, side)
    mode = _MODES.get(file.get("resample", 2))
    if mode is None:
        raise UserError(f"{source}: resample {file['resample']} is not supported (0, 2 and 3 are)")
    return replace(
        base,
        resize=resize,
        crop=crop,
        mean=tuple(float(v) for v in mean),
        std=tuple(float(v) for v in std),
        scale=float(scale),
        offset=float(offset),
        interpolation=mode,
        source=source,
    )


def _side(size: Any) -> int | tuple[int, int]:
    if isinstance(size, int):
        return size
    return int(size["shortest_edge"]) if "shortest_edge" in size else (int(size["height"]), int(size["width"]))
