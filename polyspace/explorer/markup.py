"""Pieces of HTML for the page. All words are escaped, all pictures are inside: nothing is fetched from anywhere."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from polyspace.explorer.library import Library, Picture
from polyspace.explorer.views import ChunkView, ClassView, Column, Found, chunk_rows, step_pictures, strip

WIDE, THUMB = 270, 88  # pixels of a step's picture, and of a neighbour's
STYLE = """
.ps { font-size: 14px; line-height: 1.45; }
.ps table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.ps th, .ps td { border: 1px solid var(--border-color-primary); padding: 3px 8px; text-align: left; }
.ps th { background: var(--background-fill-secondary); }
.ps .scroll th, .ps .scroll td { padding: 2px 5px; font-size: 12.5px; }
.ps .scroll td { white-space: nowrap; }
.ps .bars { white-space: nowrap; }
.ps .soft { opacity: .75; font-size: 13px; }
.ps .head { font-size: 17px; font-weight: 600; margin: 0 0 4px; }
.ps .fault, .ps .mark { border: 2px solid #b42318; color: #b42318; font-weight: 600; padding: 6px 10px; margin: 4px 0; }
.dark .ps .fault, .dark .ps .mark { color: #ff7b72; border-color: #ff7b72; }
.ps .swatch { display: inline-block; width: 14px; height: 14px; vertical-align: -2px; margin-right: 6px;
  border: 1px solid #8888; }
.ps .row { display: flex; flex-wrap: wrap; gap: 10px; align-items: flex-start; }
.ps figure { margin: 0; text-align: center; } .ps figcaption { font-size: 12px; }
.ps img { display: block; image-rendering: pixelated; max-width: 100%; margin: 0; }
.ps .steps { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: 8px; padding: 3px; }
.ps .steps img { width: 100%; } .ps .figure img { image-rendering: auto; } .ps .now img { outline: 3px solid #f97316; }
.ps .scroll { max-height: 330px; overflow: auto; flex: 1 1 320px; }
.ps .columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 12px; }
.ps .column { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: 8px; position: relative;
  overflow: hidden; }
.ps .stand-in::after { content: "identity stand-in"; position: absolute; inset: 0; display: grid; place-items: center;
  font-size: 28px; font-weight: 700; color: #ef4444; opacity: .5; transform: rotate(-28deg); pointer-events: none; }
.ps .clip { margin: 8px 0; overflow-wrap: anywhere; } .ps .clip .row { gap: 3px; flex-wrap: nowrap; }
.ps .blank { width: 88px; height: 50px; background: var(--background-fill-secondary); display: grid;
  place-items: center; font-size: 11px; color: var(--body-text-color-subdued); }
.ps .itself { background: #f97316; color: #fff; border-radius: 3px; padding: 0 5px; font-size: 11px; }
.ps .bar { display: inline-block; height: 12px; background: #4878a8; vertical-align: -1px; margin-right: 6px; }
"""


def escape(text: object) -> str:
    """Also braces and the like, which the page's templates would read."""
    return html.escape(str(text), quote=True).replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;")


def box(*parts: str) -> str:
    return f'<div class="ps">{"".join(parts)}</div>'


def line(text: str, kind: str = "") -> str:
    return f'<div class="{kind}">{escape(text)}</div>'


def fault(text: str) -> str:
    """A sentence that can't be overlooked."""
    return box(f'<div class="fault" role="alert">{escape(text)}</div>')


def data_uri(picture: Picture) -> str:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def image(picture: Picture, words: str, width: int | None = None) -> str:
    size = f' width="{width}"' if width else ""
    return f'<img alt="{escape(words)}"{size} src="{data_uri(picture)}">'


def table(rows: Iterable[Sequence[str]], header: Sequence[str]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{escape(word)}</th>" for word in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def strip_html(view: ChunkView, step: int) -> str:
    """All steps small, the present one framed."""
    figures = []
    for number, picture in enumerate(strip(view)):
        words = f"step {number + 1}"
        mark = ' class="now"' if number == step else ""
        figures.append(f"<figure{mark}>{image(picture, words)}<figcaption>{words}</figcaption></figure>")
    return box(f'<div class="steps">{"".join(figures)}</div>')


def step_html(view: ChunkView, step: int) -> str:
    """A step large, plain and with chunks (a cell's chunk is told under the pointer), and its chunks in a table."""
    plain, drawn = step_pictures(view, step)
    first = step * view.every + 1
    frames = f"frame {first}" if view.every == 1 else f"first of frames {first}–{first + view.every - 1}"
    rows = chunk_rows(view, step)
    said = {row["chunk"]: _said(row) for row in rows}
    chunks = f"{len(rows)} chunks"
    figures = (
        f"<figure>{image(plain, 'frame as the student sees it', WIDE)}<figcaption>{escape(frames)} "
        f"({len(view.frames)} are sampled)</figcaption></figure>"
        f"<figure>{_hover(view, step, drawn, said)}<figcaption>{chunks} in step {step + 1}; point at one"
        "</figcaption></figure>"
    )
    cells = [
        [
            f'<span class="swatch" style="background: rgb{row["colour"]}"></span>{row["chunk"]}',
            str(row["cells_here"]),
            f"{row['size']:.1f}",
            *(f"{x + 1:.1f}" for x in row["centroid"]),
            "–".join(str(n + 1) for n in dict.fromkeys(row["steps"])),
        ]
        for row in rows
    ]
    head = ["chunk", "cells here", "cells in all", "centroid: step", "row", "col.", "steps"]
    return box(f'<div class="row">{figures}<div class="scroll">{table(cells, head)}</div></div>')


def _said(row: dict) -> str:
    t, y, x = (value + 1 for value in row["centroid"])
    first, last = (n + 1 for n in row["steps"])
    return (
        f"chunk {row['chunk']}: {row['size']:.1f} cells, {row['cells_here']} of them here; "
        f"centroid at step {t:.1f}, row {y:.1f}, column {x:.1f}; steps {first} to {last}"
    )


def _hover(view: ChunkView, step: int, drawn: Picture, said: dict[int, str]) -> str:
    owner = view.chunks.owner[step]
    h, w = owner.shape
    cells = "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1" fill="transparent"><title>{escape(said[int(owner[y, x])])}</title>'
        "</rect>"
        for y in range(h)
        for x in range(w)
    )
    shown = f'<image href="{data_uri(drawn)}" width="{w}" height="{h}" preserveAspectRatio="none"/>'
    tall = round(WIDE * drawn.shape[0] / drawn.shape[1])
    return (
        f'<svg role="img" aria-label="the same frame with chunks" width="{WIDE}" height="{tall}" '
        f'viewBox="0 0 {w} {h}" preserveAspectRatio="none">{shown}{cells}</svg>'
    )


def _clip(found: Found, library: Library, metric: str, count: int) -> str:
    pictures = library.pictures(found.id)
    chosen = pictures[1:2] if count == 1 else pictures
    shown = "".join(image(picture, f"frame of {found.id}", THUMB) for picture in chosen)
    shown = shown or '<div class="blank">no file here</div>'
    itself = ' <span class="itself">this clip</span>' if found.itself else ""
    path = library.find(found.id)
    name = found.id if path is None or len(found.id) < 40 else path.name
    return (
        f'<div class="clip"><div class="row">{shown}</div><b>{found.score:.3f}</b> '
        f'<span class="soft">{metric}</span>{itself}<br><span title="{escape(found.id)}">{escape(name)}</span></div>'
    )


def _metric(column: Column) -> str:
    return "cosine" if getattr(column.source.store, "metric", "cosine") == "cosine" else "squared distance"


def column_html(column: Column, library: Library, count: int = 1) -> str:
    """One source's neighbours, each with `count` frames."""
    head = f'<div class="head">{escape(column.source.space)}</div>{line(column.source.place, "soft")}'
    mark = line("identity stand-in: untrained, says nothing", "mark") if column.source.stand_in else ""
    told = fault(column.fault) if column.fault else ""
    clips = "".join(_clip(found, library, _metric(column), count) for found in column.found)
    kind = "column stand-in" if column.source.stand_in else "column"
    return f'<div class="{kind}">{head}{mark}{told}{clips}</div>'


def columns_html(columns: Sequence[Column], library: Library) -> str:
    return box(f'<div class="columns">{"".join(column_html(column, library) for column in columns)}</div>')


def detail_html(column: Column, library: Library) -> str:
    """One source at leisure: what is compared, and three frames a clip."""
    mark = line("identity stand-in: untrained, says nothing", "mark") if column.source.stand_in else ""
    told = fault(column.fault) if column.fault else ""
    clips = "".join(f'<div class="column">{_clip(found, library, _metric(column), 3)}</div>' for found in column.found)
    kind = "row column stand-in" if column.source.stand_in else "row"
    return box(line(f"{column.source.about}.", "soft"), mark, told, f'<div class="{kind}">{clips}</div>')


def classes_html(view: ClassView, stand_in: bool, shown: int = 10) -> str:
    """A table with a bar for each head; the fusion pair over the same classes, a probe beside where its own differ."""
    pairs = {name: p for name, p in view.heads.items() if name != "probe"}
    parts = [line(view.sentence)]
    tables = [pairs] if pairs else []
    if "probe" in view.heads:
        if tables and view.heads["probe"].keys() == pairs["fusion"].keys():
            tables = [view.heads]
        else:
            tables.append({"probe": view.heads["probe"]})
    for heads in tables:
        order = list(heads[view.chosen] if view.chosen in heads else next(iter(heads.values())))
        if len(order) > shown:
            parts.append(line(f"The {shown} most likely of {len(order)} classes.", "soft"))
        rows = [
            [escape(name), *(_bar(p[name], head == view.chosen) for head, p in heads.items())] for name in order[:shown]
        ]
        names = {"student": "student only"}
        header = [names.get(head, head) + (" (chosen)" if head == view.chosen else "") for head in heads]
        parts.append(table(rows, ["class", *(f"{word}, probability" for word in header)]) + "<br>")
    body = "".join(parts)
    mark = line("identity stand-in: untrained features, the classes say little", "mark") if stand_in else ""
    return box(mark, f'<div class="column stand-in">{body}</div>' if stand_in else body)


def _bar(p: float, chosen: bool) -> str:
    look = f"width: {max(1, round(120 * p))}px; background: {'#f97316' if chosen else '#4878a8'}"
    return f'<span class="bars"><span class="bar" style="{look}"></span>{p:.1%}</span>'
