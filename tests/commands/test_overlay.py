"""polyspace overlay: every frame of a clip with its chunks over it, in flat memory, or a sentence and no file."""

import shlex
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_ok

from polyspace.commands import overlay as command
from polyspace.commands.overlay import OverlayConfig, overlay
from polyspace.config import parse, run_command
from polyspace.data.transforms import seen_box
from polyspace.data.video import probe, read_frames
from polyspace.data.video_writer import write_video
from polyspace.report.overlay_sheet import GAP
from polyspace.utils.plan import Plan

ASSET = Path(command.__file__).parents[1] / "assets" / "backbones" / "hnet_vjepa"


def called(line):
    return run_command(command.main, shlex.split(line))


def a_video(path, frames, height=40, width=56, fps=12):
    """A square that moves over noise."""
    rng = np.random.default_rng(0)
    ground = rng.integers(60, 120, (height, width, 3), dtype=np.uint8)

    def pictures():
        for i in range(frames):
            picture = ground.copy()
            left = i % max(1, width - 12)
            picture[height // 3 : height // 3 + 12, left : left + 12] = (230, 40, 30)
            yield picture

    write_video(path, pictures(), fps)
    return path


def tokens_said(text):
    return float(text.split(" tokens on average")[0].split()[-1])


def test_the_line_of_the_readme_works(made, clip, tmp_path):
    write_video(tmp_path / "clip.mp4", read_frames(clip, range(13)).numpy(), 12)
    (tmp_path / "outputs").symlink_to(made / "outputs")
    done = run_ok("polyspace overlay clip.mp4 --run outputs -o out.mp4", tmp_path)
    assert done.stdout.splitlines()[-1] == "-> out.mp4"
    info = probe(tmp_path / "out.mp4")
    assert (info.num_frames, info.fps, info.damage) == (13, 12.0, None) and info.height % 2 == info.width % 2 == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "out.mp4", "outputs"]


def test_a_short_clip_is_one_window_with_the_chunks_that_look_sees(ps, made, clip, tmp_path, capsys):
    assert called(f"{clip} --run {made}/bundle --out {tmp_path}/a.webm") == 0
    said = capsys.readouterr().out
    assert "13 frames in 1 window of 13" in said and "27 tubelets" in said
    assert tokens_said(said) == ps.look(clip)[1].tokens
    assert called(f"{clip} --run {made}/bundle --out {tmp_path}/b.avi --num_chunks 4") == 0
    assert tokens_said(capsys.readouterr().out) == 4


def test_windows_follow_the_stride_and_the_part_that_is_asked_for(made, tmp_path, capsys):
    long = a_video(tmp_path / "long.mp4", 50)
    line = f"{long} --run {made}/outputs --out {tmp_path}/x.mp4"
    for more, frames, said in (
        ("--stride 1", 50, "50 frames in 9 windows of 6"),
        ("--stride 2.5", 50, "50 frames in 4 windows of 15"),
        ("", 50, "50 frames in 2 windows of 25"),
        ("--start 1 --seconds 2 --stride 1", 24, "24 frames in 4 windows of 6"),
        ("--start 4", 2, "2 frames in 1 window of 2"),
        ("--seconds 0.01 --fps 5", 1, "1 frames in 1 window of 1"),
    ):
        assert called(f"{line} {more}") == 0
        assert said in capsys.readouterr().out
        assert probe(tmp_path / "x.mp4").num_frames == frames
    assert probe(tmp_path / "x.mp4").fps == 5
    assert called(f"{line} --start 4.2") == 2 and "ends after 4.2 s" in capsys.readouterr().err


def test_a_start_is_the_same_frame_wherever_the_key_frames_lie(made, tmp_path):
    long = a_video(tmp_path / "long.mp4", 50)
    for start, name in ((0, "all"), (2, "end")):
        overlay(OverlayConfig(clip=long, run=made / "outputs", out=tmp_path / f"{name}.mp4", start=start, fill=0))
    whole, part = (read_frames(tmp_path / f"{name}.mp4", [i]) for name, i in (("all", 49), ("end", 25)))
    middle = (slice(None), slice(60, 180), slice(260, 420))  # of the second panel: no colours, dots alike
    assert (whole[middle].int() - part[middle].int()).abs().float().mean() < 4


def test_a_student_that_does_not_choose_has_one_panel_and_says_so(made, clip, checkpoints, tmp_path, capsys):
    from polyspace.bundle.files import save_bundle
    from polyspace.bundle.parts import Bundle
    from polyspace.models.backbones import describe_all

    card = describe_all("videomae", [], 4, [f"videomae={checkpoints['videomae']}"])["videomae"]
    save_bundle(Bundle(card, spaces={card.name: card.about()}), tmp_path / "plain")
    assert called(f"{clip} --run {tmp_path}/plain --out {tmp_path}/x.mp4") == 0
    assert "videomae does not choose its tokens, so only its 8 tubelets are drawn" in capsys.readouterr().out
    info = probe(tmp_path / "x.mp4")
    assert info.num_frames == 13 and info.width == 2 * 200 + 2 * GAP
    assert called(f"{clip} --run {tmp_path}/plain --out {tmp_path}/y.mp4 --num_chunks 3") == 2
    assert "does not choose its tokens" in capsys.readouterr().err and not (tmp_path / "y.mp4").exists()


@pytest.mark.parametrize(
    ("height", "width", "resize"), [(60, 100, 24), (100, 60, 24), (48, 48, 24), (60, 100, (24, 24)), (30, 90, 36)]
)
def test_the_seen_box_is_where_the_crop_lies(height, width, resize):
    plan = Plan(1, resize, (24, 24), (0.0,) * 3, (1.0,) * 3)
    from polyspace.data.transforms import prepare

    frame = torch.zeros(height, width, 3, dtype=torch.uint8)
    frame[..., 0] = torch.linspace(0, 250, height).round()[:, None]
    frame[..., 1] = torch.linspace(0, 250, width).round()
    seen = prepare(frame[None], plan)[0, 0] * 255  # (24,24,3): levels tell the place
    top, left, tall, wide = seen_box(height, width, plan)
    for at in (3, 12, 20):
        y, x = top + (at + 0.5) / 24 * tall - 0.5, left + (at + 0.5) / 24 * wide - 0.5
        assert seen[at, at, 0] / 250 * (height - 1) == pytest.approx(y, abs=1)
        assert seen[at, at, 1] / 250 * (width - 1) == pytest.approx(x, abs=1)


@pytest.mark.parametrize(
    ("name", "frames", "shape"),
    [
        ("odd/rot_video_90.mov", 3, (568, 320)),
        ("odd/vfr_torchcodec.mp4", 300, (256, 256)),
        ("odd/one_pixel.mp4", 5, (180, 180)),
        ("odd/h264_10bits.mp4", 30, (200, 200)),
        ("odd/block_ends_beyond_cluster.mkv", 1, (432, 576)),
        ("odd/unordered.mov", 4, (200, 200)),
        ("clips/mmaction2_test.avi", 164, (240, 320)),
        ("ssv2/20bn-something-something-v2/166766.webm", 49, (240, 427)),
    ],
)
def test_every_frame_of_real_files_is_drawn(real_data, tmp_path, name, frames, shape):
    done = overlay(OverlayConfig(clip=real_data / name, run=ASSET, out=tmp_path / "x.mp4"))
    assert done.frames == frames and done.picture == shape and done.damage is None
    info, own = probe(tmp_path / "x.mp4"), probe(real_data / name)
    assert info.num_frames == frames and info.fps == pytest.approx(own.fps, rel=1e-3) and info.damage is None
    assert info.height >= shape[0] and info.width >= 2 * shape[1]


def test_of_a_damaged_file_what_decodes_is_drawn(real_data, tmp_path, capsys):
    assert called(f"{real_data}/odd/corrupted.mp4 --run {ASSET} --out {tmp_path}/x.mp4 --height 90") == 0
    said = capsys.readouterr()
    assert "decode error after 28 frames" in said.err and "what comes before is drawn" in said.err
    assert "frames of 1280x720 are scaled down to 160x90" in said.out
    assert probe(tmp_path / "x.mp4").num_frames == 28


def test_bad_input_is_answered_with_a_sentence_and_no_file(real_data, made, clip, tmp_path, capsys):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "file").write_text("")
    odd, out = real_data / "odd", f"--run {made}/outputs --out {tmp_path}"
    before = sorted(tmp_path.rglob("*"))
    for line, said in (
        (f"{tmp_path}/absent.mp4 {out}/x.mp4", "absent.mp4: no such file"),
        (f"{tmp_path} {out}/x.mp4", "no such file"),
        (f"{tmp_path}/text.mp4 {out}/x.mp4", "cannot be opened"),
        (f"{odd}/audio_only.mp3 {out}/x.mp4", "no video stream"),
        (f"{odd}/zero_frames.webm {out}/x.mp4", "decode error after 0 frames"),
        (f"{odd}/invalid_vp9_bug_1416.webm {out}/x.mp4", "absurd frame size"),
        (f"{clip} {out}/x.gif", "cannot write .gif files"),
        (f"{clip} {out}/x", "known: .avi, .mp4, .webm"),
        (f"{clip} {out}/file/x.mp4", "cannot write to"),
        (f"{clip} --run {made}/outputs --out {clip}", "is the clip itself"),
        (f"{clip} --run {tmp_path}/none --out {tmp_path}/x.mp4", "none is not a folder"),
        (f"{clip} --run {tmp_path} --out {tmp_path}/x.mp4", "holds no encoder"),
        (f"{clip} {out}/x.mp4 --fill 2", "--fill '2'"),
        (f"{clip} --run {made}/outputs", "--out is required"),
        (f"{out}/x.mp4", "required: clip"),
    ):
        assert called(line) == 2, line
        assert said in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before, line


def test_a_failure_half_way_leaves_the_older_file(made, clip, tmp_path, monkeypatch):
    (tmp_path / "x.mp4").write_bytes(b"older")

    def fails(*_):
        raise RuntimeError("half way")

    monkeypatch.setattr(command._Panels, "draw", fails)
    with pytest.raises(RuntimeError):
        overlay(OverlayConfig(clip=clip, run=made / "outputs", out=tmp_path / "x.mp4"))
    assert [p.name for p in tmp_path.iterdir()] == ["x.mp4"] and (tmp_path / "x.mp4").read_bytes() == b"older"


def test_memory_does_not_grow_with_the_clip(made, tmp_path):
    def peak(frames):
        long = a_video(tmp_path / f"{frames}.mp4", frames)
        tracemalloc.start()
        overlay(OverlayConfig(clip=long, run=made / "outputs", out=tmp_path / "x.mp4", height=60))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(8)  # imports
    assert peak(480) < peak(60) + 2**20  # the frames of the longer would be 2.8 MiB more, their sheets 27


@pytest.mark.slow
def test_frames_of_4k_are_scaled_down(tmp_path):
    clip = a_video(tmp_path / "big.mp4", 8, 2160, 3840, 30)
    done = overlay(OverlayConfig(clip=clip, run=ASSET, out=tmp_path / "x.mp4"))
    assert done.picture == (720, 1280) and done.frames == probe(tmp_path / "x.mp4").num_frames == 8


@pytest.mark.slow
def test_a_clip_of_ten_minutes_is_drawn_to_its_end(tmp_path):
    clip = a_video(tmp_path / "long.mp4", 7200, 48, 64, 12)
    done = overlay(OverlayConfig(clip=clip, run=ASSET, out=tmp_path / "x.mp4"))
    info = probe(tmp_path / "x.mp4")
    assert done.frames == info.num_frames == 7200 and len(done.tokens) == 150 and info.duration == 600


def test_words_come_without_a_flag_and_flags_may_have_a_letter():
    config = parse(OverlayConfig, ["--run", "r", "c.mp4", "-o", "x.mp4"], prog="p", about="", example="")
    assert (config.clip, config.run, config.out) == (Path("c.mp4"), Path("r"), Path("x.mp4"))
