"""A video file opened by FFmpeg: its best stream under limits, and an index of its packets where it can be trusted."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyspace.utils.errors import UserError

MAX_PIXELS = 8192 * 8192  # a declared frame beyond this is refused before anything is allocated for it
# a head may say 16x16 where the frames have more: decoders refuse them too, also while FFmpeg finds out what is there
_LIMITS: list[Any] = [{"max_pixels": str(MAX_PIXELS)}] * 16
_WITHOUT_TIMES = {"avi"}  # containers that store no presentation times: those of B-frames are guessed


class VideoError(UserError):
    """A clip can't be read; `.path` and `.reason` say which and why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoError, (self.path, self.reason)


@dataclass(frozen=True)
class PacketIndex:
    """Presentation times of all packets, sorted, and those that are key frames."""

    pts: list[int]
    keys: list[int]


def open_video(path: str, threads: int = 1) -> tuple[Any, Any]:
    """The file (an av container) and its best video stream, nothing decoded; VideoError where there is none."""
    import av

    if not Path(path).is_file():
        raise VideoError(path, "no such file")
    with ExitStack() as closing:
        try:
            file = closing.enter_context(av.open(path, metadata_errors="replace", stream_options=_LIMITS))
            stream = _best_stream(file, path)
        except VideoError:  # a ValueError too
            raise
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(path, f"cannot be opened ({reason(error)})") from error
        stream.codec_context.options = _LIMITS[0]
        stream.thread_count = threads
        stream.thread_type = "AUTO" if threads != 1 else "NONE"
        closing.pop_all()  # whoever asked closes it
    return file, stream


def _best_stream(file: Any, path: str) -> Any:
    import av

    stream = file.streams.best("video")
    if stream is None:
        raise VideoError(path, "no video stream")
    if stream.codec_context is None:
        raise VideoError(path, "no decoder for its video codec")
    width, height = stream.codec_context.width, stream.codec_context.height
    if not width * height:  # perhaps the limit took it away: what the head alone says, nothing being decoded
        with av.open(path, metadata_errors="replace", options={"probesize": "32"}) as head:
            width, height = head.streams[stream.index].width, head.streams[stream.index].height
    if width * height > MAX_PIXELS:
        raise VideoError(path, f"absurd frame size {width}x{height}")
    return stream


def read_index(file: Any, stream: Any) -> tuple[PacketIndex | None, int]:
    """The index of a stream, None where it can't be trusted, and how many packets there are. The file is then read to
    its end: whoever goes on seeks first, or opens it anew."""
    import av

    pts, keys, packets, sound = [], [], 0, True
    try:
        for packet in file.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            packets += 1
            if packet.pts is None or packet.is_corrupt:
                sound = False
                continue
            pts.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    except av.FFmpegError:
        sound = False
    container = set(file.format.name.split(","))
    if not sound or not keys or len(set(pts)) != len(pts) or container & _WITHOUT_TIMES:
        return None, packets
    return PacketIndex(sorted(pts), sorted(keys)), packets


def reason(error: BaseException) -> str:
    """What FFmpeg or the system said, in a few words."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.split(":")[0].strip()
