"""One self-contained HTML page from headings, paragraphs, tables and pictures: no network, light and dark, prints."""

import base64
import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from polyspace.report.figures import svg_figure
from polyspace.utils.checkpoint_io import write_text
from polyspace.utils.errors import UserError

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de; --soft: #f6f8fa; --warn: #b42318;
  --link: #0550ae; --good: #1a7f37; --bad: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d; --soft: #161b22; --warn: #ff7b72;
    --link: #79c0ff; --good: #56d364; --bad: #ff7b72; } }
body { font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; color: var(--ink); background: var(--paper);
  margin: 0; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { margin: 0 0 .25rem; } h2 { margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { margin: 1.4rem 0 .4rem; font-size: 1.05rem; }
a { color: var(--link); } nav { margin: .6rem 0; } nav a { margin-right: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; }
th { white-space: nowrap; }
th { background: var(--soft); } figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
figure svg { max-width: 100%; height: auto; display: block; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption, .small, details { font-size: .88rem; opacity: .9; }
pre { background: var(--soft); padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; }
summary { cursor: pointer; } details pre { margin: .4rem 0; }
.warn { border: 2px solid var(--warn); color: var(--warn); padding: .7rem 1rem; font-weight: 600; margin: 1rem 0; }
@media print { main { max-width: none; } h2, h3 { break-after: avoid; } figure, table { break-inside: avoid; }
  nav, details:not([open]) { display: none; } }
"""


@dataclass
class Page:
    """Collects parts in order; `write` puts out one file.

    >>> page = Page("Run"); page.heading("Scores"); page.table(rows, header); page.write(path)
    """

    title: str
    parts: list[str] = field(default_factory=list)
    contents: list[tuple[str, str]] = field(default_factory=list)  # (anchor, heading)
    extras: dict[str, str] = field(default_factory=dict)  # styles and scripts by name, each put in once
    failed: dict[str, str] = field(default_factory=dict)  # what could not be shown, and why
    marked: bool = False  # figures get the stand-ins' watermark
    figures: int = 0

    @contextmanager
    def section(self, place: str, marked: bool = False) -> Iterator[None]:
        """A part of the page about `place`. A fault in its files takes it off the page and into `failed`, so that the
        rest can still be read."""
        parts, contents, before = len(self.parts), len(self.contents), self.marked
        self.marked = marked
        try:
            yield
        except (UserError, LookupError, TypeError, ValueError, OSError) as fault:
            del self.parts[parts:], self.contents[contents:]
            plain = isinstance(fault, UserError)
            words = str(fault) if plain else f"it is of another form than expected ({type(fault).__name__}: {fault})"
            self.failed[place] = words
        finally:
            self.marked = before

    def heading(self, text: str) -> None:
        anchor = f"part-{len(self.contents) + 1}"
        self.contents.append((anchor, text))
        self.parts.append(f'<h2 id="{anchor}">{html.escape(text)}</h2>')

    def subheading(self, text: str) -> None:
        self.parts.append(f"<h3>{html.escape(text)}</h3>")

    def text(self, text: str, small: bool = False) -> None:
        mark = ' class="small"' if small else ""
        self.parts.append(f"<p{mark}>{html.escape(text)}</p>")

    def warning(self, text: str) -> None:
        self.parts.append(f'<p class="warn">{html.escape(text)}</p>')

    def code(self, text: str) -> None:
        self.parts.append(f"<pre>{html.escape(text)}</pre>")

    def table(self, rows: Sequence[Sequence[object]], header: Sequence[str]) -> None:
        head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
        self.parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def figure(self, figure: Figure | None, caption: str, command: str = "", data: Any = None, name: str = "") -> None:
        """A figure, or None for what was put in `raw`, with the command and the numbers that it came from."""
        self.figures += 1
        picture = "" if figure is None else svg_figure(figure, f"figure{self.figures}", self.marked)
        behind = _behind(command, data, name or f"figure{self.figures}")
        self.parts.append(f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption>{behind}</figure>")

    def raw(self, markup: str, **extras: str) -> None:
        """Markup of our own; `extras`: a `<style>` or `<script>` by name, which the page needs once."""
        self.parts.append(markup)
        self.extras |= extras

    def write(self, path: Path) -> Path:
        title = html.escape(self.title)
        links = " ".join(f'<a href="#{anchor}">{html.escape(text)}</a>' for anchor, text in self.contents)
        contents = f"<nav>{links}</nav>" if len(self.contents) > 2 else ""
        body = "\n".join(self.parts)
        write_text(
            path,
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{_STYLE}</style></head><body><main><h1>{title}</h1>\n{contents}\n{body}\n</main>"
            f"{''.join(self.extras.values())}</body></html>\n",
        )
        return path


def _behind(command: str, data: Any, name: str) -> str:
    """A fold with the command, and a link that saves the numbers as JSON."""
    if not command and data is None:
        return ""
    inner = f"<pre>{html.escape(command)}</pre>" if command else ""
    if data is not None:
        text = base64.b64encode(json.dumps(_plain(data)).encode()).decode()
        file = html.escape(f"{name}.json", quote=True)
        inner += f'<a download="{file}" href="data:application/json;base64,{text}">{file}</a>'
    return f"<details><summary>command and data</summary>{inner}</details>"


def _plain(value: Any) -> Any:
    """For JSON: what is no number becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
