"""What a tree of processes holds, from Linux's /proc, and what a series of such samples says."""

import ctypes
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from scipy import stats

MIB = 2**20
WARM_UP = 0.15  # share of a series that is left out: imports, caches, arenas


def tree(root: int) -> list[int]:
    """`root` and all its descendants that are alive."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry))
    out = [root]
    for pid in out:
        out += parents.get(pid, [])
    return out


def reading(root: int, temporary: Path) -> dict[str, Any]:
    """Sums over the tree: MiB of anonymous and shared memory (PSS: pages of several processes count once; mapped files
    are left out, as other programs share them), open files, threads, children, CPU seconds. Then MiB of the root alone
    (RSS), files in its temporary folder, and MiB in use of /dev/shm, by whomever."""
    sums = {"pss_mib": 0.0, "fds": 0, "threads": 0, "children": -1, "cpu_s": 0.0}
    ticks = os.sysconf("SC_CLK_TCK")
    for pid in tree(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            sums["cpu_s"] += sum(map(int, fields[11:15])) / ticks  # its own and that of children that have ended
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            memory = sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
            fds = len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
        own = {"pss_mib": memory / 1024, "fds": fds, "threads": int(fields[17]), "children": 1}
        sums |= {key: sums[key] + own[key] for key in own}
    resident = int(Path(f"/proc/{root}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
    shared = os.statvfs("/dev/shm")
    used = (shared.f_blocks - shared.f_bfree) * shared.f_frsize / MIB
    files = sum(len(names) for _, _, names in os.walk(temporary))
    return sums | {"rss_mib": resident, "temp_files": files, "shm_mib": used}


class _Mallinfo2(ctypes.Structure):
    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def heap_mib() -> float:
    """MiB that the process has asked glibc for and not given back: what is held, without what the allocator keeps free
    (which RSS counts too); nan where there is no mallinfo2."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return float("nan")
    ask.restype = _Mallinfo2
    found = ask()
    return float(found.uordblks + found.hblkhd) / MIB


def active_clock(times: Sequence[float], cpu: Sequence[float]) -> list[float]:
    """Seconds of work at every sample: between two samples as many as the processes computed in, and never more than
    passed. So neither a stopped tree nor one that others crowd out counts as having worked."""
    clock = [0.0]
    for (before, used), (now, more) in pairwise(zip(times, cpu, strict=True)):
        clock.append(clock[-1] + min(now - before, max(0.0, more - used)))
    return clock


def trend(seconds: Sequence[float], values: Sequence[float], blocks: int = 0) -> dict[str, float]:
    """Least squares through what follows the warm-up: slope an hour with its 95 % interval (Student's t), and the
    median of the last quarter less that of the first.

    Samples a few seconds apart are not independent; with `blocks` the line goes through the medians of so many equal
    stretches of time instead, so that the interval is honest about it. Empty where there are fewer than three points.
    """
    start = seconds[0] + WARM_UP * (seconds[-1] - seconds[0])
    kept = [(s / 3600, v) for s, v in zip(seconds, values, strict=True) if s >= start]
    quarter = (kept[-1][0] - kept[0][0]) / 4
    first = [v for h, v in kept if h <= kept[0][0] + quarter]
    last = [v for h, v in kept if h >= kept[-1][0] - quarter]
    points = block_medians(kept, blocks) if blocks else kept
    if len(points) < 3:  # no line with an interval
        return {}
    line = stats.linregress([h for h, _ in points], [v for _, v in points])
    constant = len({v for _, v in points}) == 1  # scipy's error of its slope is then no number
    half = 0.0 if constant else stats.t.ppf(0.975, len(points) - 2) * line.stderr
    return {
        "slope": float(line.slope),
        "low": float(line.slope - half),
        "high": float(line.slope + half),
        "points": len(points),
        "first_quarter": median(first),
        "last_quarter": median(last),
        "difference": median(last) - median(first),
        "highest": max(v for _, v in kept),
    }


def block_medians(points: Sequence[tuple[float, float]], blocks: int) -> list[tuple[float, float]]:
    """Median place and value of each of `blocks` equal stretches; stretches without points are left out."""
    low, high = points[0][0], points[-1][0]
    groups: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        groups.setdefault(min(blocks - 1, int(blocks * (point[0] - low) / (high - low))), []).append(point)
    return [(median(h for h, _ in group), median(v for _, v in group)) for _, group in sorted(groups.items())]
