"""Decoded frames to RGB, bit-equal to the ffmpeg command line."""

from typing import Any

import numpy as np


class RgbConverter:
    """Frame -> upright uint8 (H,W,3), bit-equal to the ffmpeg command line.

    Eight-bit formats go through swscale directly; deeper ones through a scale filter with its default flags, since
    the direct path places chroma differently there (up to 21 levels off on a test pattern).
    """

    def __init__(self, stream: Any) -> None:
        from av.video.reformatter import VideoReformatter

        self._stream, self._reformatter = stream, VideoReformatter()
        self._graph: Any = None
        self._size: Any = None

    def __call__(self, frame: Any) -> np.ndarray:
        if max(c.bits for c in frame.format.components) > 8:
            rgb = self._through_filter(frame)
        else:
            rgb = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        turns = round((frame.rotation or 0) / 90) % 4
        return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb

    def _through_filter(self, frame: Any) -> np.ndarray:
        from av.filter import Graph

        shape = (frame.width, frame.height, frame.format.name)
        if self._graph is None or self._size != shape:
            graph = Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=self._stream.time_base
            )
            graph.link_nodes(source, graph.add("scale", ""), graph.add("format", "rgb24"), graph.add("buffersink"))
            graph.configure()
            self._graph, self._size = graph, shape
        self._graph.push(frame)
        return self._graph.pull().to_ndarray()
