"""Sections that show clips: a map of each space with thumbnails, and what lies nearest to a clip in each."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex

from polyspace.report.figures import WATERMARK
from polyspace.report.html import Page
from polyspace.report.library import FRAMES, NEAREST, SIDE, Library, SpaceView, facts

BOX, EDGE = 240, 12  # a map's side and its margin, in units of its SVG
QUERIES = 4
STYLE = f"""<style>
.maps {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(15.5rem, 1fr)); gap: 1rem; }}
.standin {{ position: relative; }} .standin::after {{ content: "{WATERMARK}"; position: absolute; inset: 0; color: red;
  display: grid; place-items: center; opacity: .5; font-size: 3rem; transform: rotate(-28deg); pointer-events: none; }}
.maps figure {{ margin: 0; }} .maps svg {{ width: 100%; border: 1px solid var(--line); }}
.maps circle.hot {{ stroke: currentColor; stroke-width: 2.5; }}
.key span {{ display: inline-block; margin-right: .9rem; }}
.key i {{ display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .3rem; }}
.tip {{ position: fixed; display: none; pointer-events: none; background: var(--paper); color: var(--ink);
  border: 1px solid var(--line); padding: .3rem; font-size: .8rem; max-width: 15rem; z-index: 9; }}
.thumb {{ display: inline-block; width: {SIDE}px; height: {SIDE}px; background-size: {FRAMES * SIDE}px auto;
  animation: play 1.6s steps({FRAMES}) infinite; }}
@keyframes play {{ to {{ background-position-x: -{FRAMES * SIDE}px; }} }}
@media (prefers-reduced-motion: reduce) {{ .thumb {{ animation: none; }} }}
@media print {{ .thumb {{ animation: none; print-color-adjust: exact; }} }}
.strip td {{ padding: .25rem .4rem; white-space: nowrap; }} .strip th {{ white-space: normal; max-width: 18rem; }}
.strip .thumb {{ border: 3px solid var(--good); }}
.strip .thumb.other {{ border: 3px dashed var(--bad); }} .strip .thumb.asked {{ border-color: var(--line); }}
</style>"""
SCRIPT = """<script>
document.querySelectorAll(".library").forEach(function (box) {
  var about = JSON.parse(box.querySelector("script").textContent), tip = box.querySelector(".tip");
  function show(event) {
    var i = event.target.dataset && event.target.dataset.i;
    box.querySelectorAll("circle.hot").forEach(function (c) { c.classList.remove("hot"); });
    if (i === undefined) { tip.style.display = "none"; return; }
    box.querySelectorAll('circle[data-i="' + i + '"]').forEach(function (c) { c.classList.add("hot"); });
    tip.querySelector(".thumb").style.backgroundPositionY = -i * about.side + "px";
    tip.querySelector("span").textContent = about.words[i];
    tip.style.display = "block";
    tip.style.left = Math.min(event.clientX + 14, innerWidth - 260) + "px";
    tip.style.top = Math.min(event.clientY + 14, innerHeight - 110) + "px";
  }
  box.addEventListener("mouseover", show);
  box.addEventListener("mouseleave", show);
});
</script>"""


def library_sections(page: Page, library: Library) -> None:
    """Maps and retrieval strips; without videos points have words instead of pictures."""
    page.heading("Spaces")
    page.text(
        f"{library.title}: {len(library.clips)} clips in each space, one dot each. Point at a dot to see its clip, and "
        "where the same clip lies in the other spaces. Both axes of a map have one scale; distances are of the two "
        "dims shown, not of the whole space."
    )
    if len(library.classes) > 20:
        page.text("There are more classes than colours: some share one.", small=True)
    name = "sheet"
    page.raw(_sheet_style(library, name) + _maps(library, name), style=STYLE, script=SCRIPT)
    page.figure(None, "Maps of all spaces, and the nearest clips below.", library.command, facts(library), "maps")
    if library.chance is not None:
        _same(page, library)
    page.raw(_strips(library, name))


def words_of(library: Library) -> list[str]:
    """What is said of each clip: id, class, caption."""
    named = [None if clip.label is None else library.classes[clip.label] for clip in library.clips]
    parts = [[clip.id, label, clip.text] for clip, label in zip(library.clips, named, strict=True)]
    return [" · ".join(dict.fromkeys(word for word in part if word)) for part in parts]


def colours(count: int) -> list[str]:
    table = colormaps["tab10" if count <= 10 else "tab20"]
    return [to_hex(table(k % table.N)) for k in range(count)]


def _sheet_style(library: Library, name: str) -> str:
    if library.sheet is None:
        return f"<style>.{name} {{ display: none; }}</style>"
    data = base64.b64encode(library.sheet).decode()
    return f"<style>.{name} {{ background-image: url(data:image/jpeg;base64,{data}); }}</style>"


def _maps(library: Library, name: str) -> str:
    mark = " standin" if library.stand_ins else ""
    known = colours(len(library.classes))
    words = words_of(library)
    fills = ["#888888" if clip.label is None else known[clip.label] for clip in library.clips]
    maps = "".join(_map(view, fills, words) for view in library.spaces)
    about = json.dumps({"side": SIDE, "words": words}).replace("<", "\\u003c")
    shown = sorted({clip.label for clip in library.clips if clip.label is not None})
    key = "".join(f'<span><i style="background:{known[k]}"></i>{html.escape(library.classes[k])}</span>' for k in shown)
    tip = f'<div class="tip"><i class="thumb {name}"></i><br><span></span></div>'
    return (
        f'<div class="library"><script type="application/json">{about}</script>'
        f'<p class="key small">{key if len(shown) <= 20 else ""}</p><div class="maps{mark}">{maps}</div>{tip}</div>'
    )


def _map(view: SpaceView, fills: Sequence[str], words: Sequence[str]) -> str:
    low, high = view.points.min(0), view.points.max(0)
    scale = max(float((high - low).max()), 1e-12)  # one for both axes
    at = BOX / 2 + (view.points - (low + high) / 2) / scale * (BOX - 2 * EDGE)
    dots = "".join(
        f'<circle data-i="{i}" cx="{x:.1f}" cy="{BOX - y:.1f}" r="4" fill="{fill}" fill-opacity=".8">'
        f"<title>{html.escape(word)}</title></circle>"
        for i, ((x, y), fill, word) in enumerate(zip(at.tolist(), fills, words, strict=True))
    )
    caption = f"<b>{html.escape(view.name)}</b><br>→ {html.escape(view.axes[0])}, ↑ {html.escape(view.axes[1])}"
    return (
        f'<figure><svg viewBox="0 0 {BOX} {BOX}" role="img" aria-label="map of {html.escape(view.name, quote=True)}">'
        f"{dots}</svg><figcaption>{caption}</figcaption></figure>"
    )


def _same(page: Page, library: Library) -> None:
    rows = [
        [view.name, f"{view.same[0]:.3f}", f"[{view.same[1]:.3f}, {view.same[2]:.3f}]"]
        for view in library.spaces
        if view.same is not None
    ]
    page.subheading("Nearest clips")
    page.text(
        f"Share of a clip's {NEAREST} nearest others (cosine; clips of its own source video left out) that are of its "
        f"class, with a 95 % bootstrap interval over clips; by chance {library.chance:.3f}."
    )
    page.table(rows, ["space", "same class", "95 % interval"])


def _strips(library: Library, name: str) -> str:
    """For some clips of different classes, the nearest in each space."""
    words = words_of(library)
    parts = []
    for query in _queries(library):
        label = library.clips[query].label
        rows = ""
        for view in library.spaces:
            cells = "".join(
                _thumb(name, i, words, library.clips[i].label, label) for i in view.nearest[query].tolist() if i >= 0
            )
            rows += f"<tr><th>{html.escape(view.name)}</th><td>{cells}</td></tr>"
        asked = f'<i class="thumb asked {name}" style="background-position-y:-{query * SIDE}px"></i>'
        title = f'<tr><th>{asked}</th><td style="white-space: normal">nearest to {html.escape(words[query])}</td></tr>'
        parts.append(f'<div class="scroll"><table class="strip">{title}{rows}</table></div><br>')
    note = "" if library.chance is None else "Solid frame: the same class; dashed: another. "
    text = f'<p class="small">{note}Best first; point at a clip for its name.</p>'
    return text + f'<div class="{"standin" if library.stand_ins else "strips"}">{"".join(parts)}</div>'


def _thumb(name: str, index: int, words: Sequence[str], label: int | None, asked: int | None) -> str:
    other = " other" if asked is not None and label != asked else ""
    title = html.escape(words[index], quote=True)
    style = f"background-position-y:-{index * SIDE}px"
    return f'<i class="thumb {name}{other}" role="img" aria-label="{title}" title="{title}" style="{style}"></i> '


def _queries(library: Library) -> list[int]:
    """The first clip of each class, a few; of unlabelled clips the first."""
    first: dict[Any, int] = {}
    for i, clip in enumerate(library.clips):
        first.setdefault(clip.label if clip.label is not None else i, i)
    return list(first.values())[:QUERIES]


def found_section(
    page: Page, searches: Sequence[Mapping[str, Any]], texts: Mapping[str, str], sheet: bytes | None
) -> None:
    """What searches found. `texts`: captions by id; `sheet`: thumbnails of all that was found, in order."""
    page.heading("Searched for")
    rows, at, cells = [], 0, []
    for search in searches:
        shown = ""
        for rank, clip in enumerate(search["found"], 1):
            said = texts.get(clip["id"], "") or clip["id"]
            rows.append([search["query"] if rank == 1 else "", str(rank), said, f"{clip['score']:.2f}"])
            title = html.escape(said, quote=True)
            shown += f'<i class="thumb asked found" title="{title}" style="background-position-y:-{at * SIDE}px"></i> '
            at += 1
        cells.append(f"<tr><th>{html.escape(search['query'])}</th><td>{shown}</td></tr>")
    page.table(rows, ["asked for", "", "found, best first", "likeness"])
    if sheet is not None:
        data = base64.b64encode(sheet).decode()
        style = f"<style>.found {{ background-image: url(data:image/jpeg;base64,{data}); }}</style>"
        page.raw(f'{style}<div class="scroll"><table class="strip">{"".join(cells)}</table></div>', style=STYLE)
