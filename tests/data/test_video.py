"""Decoding: exact frames, true counts, rotation, seeking, and a reason for what can't be read."""

import contextlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from polyspace.data.video import VideoError, VideoReader, probe, read_frames
from polyspace.data.video_writer import encode_video, write_video

# frames, (height, width) after rotation, as the files' own list says; None: can't be read
ODD = {
    "odd/vfr_torchcodec.mp4": (300, (128, 128)),
    "odd/h264_10bits.mp4": (30, (200, 200)),
    "odd/h265_video.mp4": (10, (128, 128)),
    "odd/av1_video.mkv": (125, (360, 640)),
    "odd/bt709_full_range.mp4": (30, (720, 1280)),
    "odd/rot_video_90.mov": (3, (568, 320)),
    "odd/rot_video_180.mov": (3, (320, 568)),
    "odd/corrupted.mp4": (28, (720, 1280)),
    "odd/unordered.mov": (4, (50, 50)),
    "odd/vp9_bbb_480p_1second.webm": (24, (480, 854)),
    "odd/vp8_gulpio_test.webm": (140, (144, 256)),
    "odd/one_pixel.mp4": (5, (1, 1)),
    "odd/failing_audio.mp4": (280, (360, 640)),
    "odd/multi_stream_nasa_13013.mp4": (390, (270, 480)),
    "odd/block_ends_beyond_cluster.mkv": (1, (432, 576)),
    "odd/audio_only.mp3": None,
    "odd/invalid_vp9_bug_1416.webm": None,
    "odd/zero_frames.webm": None,
    "clips/ucf101/v_SoccerJuggling_g23_c01.avi": (240, (240, 320)),
    "clips/kinetics400/R6llTwEh07w.mp4": (303, (256, 340)),
    "clips/mmaction2_demo.mp4": (280, (256, 340)),
    "clips/mmaction2_test.avi": (164, (240, 320)),
    "hmdb51/wave/TrumanShow_wave_f_nm_np1_fr_med_26.avi": (48, (240, 432)),
    "hmdb51/wave/RATRACE_wave_f_nm_np1_fr_goo_37.avi": (72, (240, 560)),
    "ssv2/20bn-something-something-v2/166766.webm": (49, (240, 427)),
    "droid/droid_subset/videos/train/0/0.mp4": (56, (192, 320)),
}
READABLE = [name for name, facts in ODD.items() if facts]


@pytest.fixture
def clip(tmp_path):
    """60 frames of noise that compresses badly, in three groups of pictures."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 255, (60, 32, 48, 3), dtype=np.uint8)
    path = tmp_path / "clip.mp4"
    write_video(path, video)
    return path, len(video)


@pytest.mark.parametrize("name", READABLE)
def test_true_counts_and_upright_sizes(real_data, name):
    info = probe(real_data / name)
    assert (info.num_frames, (info.height, info.width)) == ODD[name]
    assert (info.damage is not None) == ("corrupted" in name)
    frames = read_frames(real_data / name, [info.num_frames - 1, 0])
    assert frames.dtype == torch.uint8 and tuple(frames.shape[1:]) == (info.height, info.width, 3)


@pytest.mark.parametrize("name", READABLE)
def test_sparse_reads_equal_a_full_decode(real_data, name):
    count = probe(real_data / name).num_frames
    full = read_frames(real_data / name, range(count))
    generator = torch.Generator().manual_seed(count)
    for size in (1, 3, 7):
        picks = torch.randint(count, (size,), generator=generator).tolist()
        assert torch.equal(read_frames(real_data / name, picks), full[picks])


@pytest.mark.parametrize("name", READABLE)
def test_indices_outside_are_index_errors(real_data, name):
    count = probe(real_data / name).num_frames
    for index in (-1, count, count + 17):
        with pytest.raises(IndexError):
            read_frames(real_data / name, [index])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("odd/audio_only.mp3", "no video stream"),
        ("odd/invalid_vp9_bug_1416.webm", "absurd frame size 12336x12336"),
        ("odd/zero_frames.webm", "decode error after 0 frames"),
        ("odd/absent.mp4", "no such file"),
    ],
)
def test_unreadable_files_say_why(real_data, name, reason):
    for call in (probe, lambda path: read_frames(path, [0])):
        with pytest.raises(VideoError) as error:
            call(real_data / name)
        assert reason in error.value.reason and error.value.path.endswith(name)


def test_reference_frames_are_bit_equal(real_data):
    clip = real_data / "odd" / "multi_stream_nasa_13013.mp4"
    for index in (0, 9, 386, 389):
        file = real_data / "reference_frames" / f"nasa_13013.mp4.stream3.frame{index:06d}.pt"
        assert torch.equal(read_frames(clip, [index])[0], torch.load(file, weights_only=True))


# the other clips' frames agree as well; one MPEG-4 clip differs by 2 levels with FFmpeg 5's inverse DCT
@pytest.mark.parametrize("name", [n for n in READABLE if "SoccerJuggling" not in n and "corrupted" not in n])
def test_frames_are_bit_equal_to_the_ffmpeg_command_line(real_data, name):
    if not shutil.which("ffmpeg"):
        pytest.skip("no ffmpeg command on this machine")
    info = probe(real_data / name)
    line = ["ffmpeg", "-v", "quiet", "-i", str(real_data / name), "-map", f"0:{info.stream_index}"]
    line += ["-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(line, capture_output=True).stdout
    expected = np.frombuffer(raw, np.uint8).reshape(-1, info.height, info.width, 3)
    assert np.array_equal(read_frames(real_data / name, range(info.num_frames)).numpy(), expected)


def test_a_sparse_read_of_a_long_file_decodes_little_of_it(tmp_path):
    path = tmp_path / "long.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 255, (700, 16, 16, 3), dtype=np.uint8))
    with VideoReader(path) as video:
        video.read([0, 650])
        assert video.decoded <= 1 + 251  # H.264's default key frame distance is 250


def test_sampling_decodes_each_frame_once_even_when_only_decoding_tells_the_count(real_data):
    path = real_data / "hmdb51" / "wave" / "TrumanShow_wave_f_nm_np1_fr_med_26.avi"
    with VideoReader(path) as video:
        indices, frames = video.sample(lambda n: [0, n // 2, n - 1])
        assert indices == [0, 24, 47] and video.decoded == 48
    assert torch.equal(frames, read_frames(path, [0, 24, 47]))


def test_named_indices_up_to_the_last_frame_are_found_where_only_decoding_tells_the_count(real_data):
    with VideoReader(real_data / "hmdb51" / "wave" / "TrumanShow_wave_f_nm_np1_fr_med_26.avi") as video:

        def last(n):
            if n < 48:
                raise IndexError("beyond the last")
            return [0, 47]

        assert video.sample(last)[0] == [0, 47]


def test_a_clip_whose_frame_size_changes_is_a_video_error_either_way(real_data, monkeypatch):
    from polyspace.data.rgb import RgbConverter

    whole, calls = RgbConverter.__call__, []

    def shrinking(self, frame):
        calls.append(frame)
        return whole(self, frame)[len(calls) :]

    monkeypatch.setattr(RgbConverter, "__call__", shrinking)
    for name in ("hmdb51/wave/TrumanShow_wave_f_nm_np1_fr_med_26.avi", "clips/mmaction2_demo.mp4"):
        with VideoReader(real_data / name) as video, pytest.raises(VideoError, match="frame size changes"):
            video.sample(lambda n: [0, n - 1])


def test_sampling_a_damaged_file_uses_its_true_count(real_data):
    with VideoReader(real_data / "odd" / "corrupted.mp4") as video:
        indices, _ = video.sample(lambda n: [n - 1])
        assert indices == [27] and video.num_frames == 28 and "after 28 frames" in video.damage


def test_a_cut_file_gives_its_good_frames_or_a_reason(clip, tmp_path):
    path, count = clip
    data = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.95):
        cut = tmp_path / f"cut{share}.mp4"
        cut.write_bytes(data[: int(len(data) * share)])
        try:
            assert probe(cut).num_frames <= count
        except VideoError as error:
            assert error.reason


def test_flipped_bytes_never_crash_or_hang(clip, tmp_path):
    path, _ = clip
    rng = np.random.default_rng(1)
    for trial in range(25):
        data = bytearray(path.read_bytes())
        for place in rng.integers(0, len(data), 20):
            data[place] ^= int(rng.integers(1, 255))
        broken = tmp_path / f"{trial}.mp4"
        broken.write_bytes(bytes(data))
        with contextlib.suppress(VideoError, IndexError):
            read_frames(broken, [0, probe(broken).num_frames - 1])


def test_text_and_empty_files_are_video_errors(tmp_path):
    for content in (b"", b"hello there\n" * 50):
        path = tmp_path / "x.mp4"
        path.write_bytes(content)
        with pytest.raises(VideoError, match=r"x\.mp4"):
            read_frames(path, [0])


@pytest.mark.parametrize("ending", [".avi", ".mp4", ".webm"])
def test_written_files_repeat_byte_for_byte_and_hold_the_frames(tmp_path, ending):
    ramp = np.linspace(0, 255, 48).astype(np.uint8)
    video = np.broadcast_to(ramp[None, None, :, None], (9, 32, 48, 3)).copy()
    video[:, :8, :8] = (np.arange(9) * 25).astype(np.uint8)[:, None, None, None]
    assert len({encode_video(video, ending) for _ in range(4)}) == 1
    path = tmp_path / f"clip{ending}"
    write_video(path, video, fps=10)
    info = probe(path)
    assert (info.num_frames, info.height, info.width, round(info.fps)) == (9, 32, 48, 10)
    assert np.abs(read_frames(path, range(9)).numpy().astype(int) - video).mean() < 6


@pytest.mark.parametrize("name", READABLE)
def test_a_stream_gives_the_frames_from_any_start(real_data, name):
    count = ODD[name][0]
    full = read_frames(real_data / name, range(count))
    for start, stop in {(0, None), (count // 2, None), (count - 1, None), (count // 3, count // 3 + 2)}:
        with VideoReader(real_data / name) as video:
            got = [rgb() for rgb in video.stream(start, stop)]
            wanted = full[start:stop].numpy()
            assert len(got) == len(wanted) and all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
            assert (video.damage is not None) == ("corrupted" in name and stop is None)


def test_a_stream_that_starts_late_decodes_from_a_key_frame_and_one_beyond_the_end_is_empty(tmp_path):
    path = tmp_path / "long.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 255, (600, 16, 16, 3), dtype=np.uint8))
    with VideoReader(path) as video:
        assert sum(1 for _ in video.stream(590)) == 10 and video.decoded < 260
        assert list(video.stream(600)) == []


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of POSIX")
def test_a_full_disk_is_a_sentence_even_while_another_file_is_read(tmp_path):
    source = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "in.mp4", source)
    code = f"""
import pathlib, resource, signal
from polyspace.data.video import VideoReader
from polyspace.data.video_writer import write_video
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
place = pathlib.Path({str(tmp_path)!r})
with VideoReader(place / "in.mp4") as video:
    write_video(place / "out.mp4", (rgb() for rgb in video.stream()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().endswith("out.mp4: File too large"), done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]
