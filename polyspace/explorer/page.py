"""The page's layout, and which control calls which panel. Needs gradio (extra [app])."""

from pathlib import Path
from typing import Any

from polyspace.data.records import VIDEO_ENDINGS
from polyspace.explorer import markup
from polyspace.explorer.session import Explorer, Opened, told
from polyspace.utils.errors import UserError

TITLE = "PolySpace explorer"
HOUR = 3600
NOTHING = "Pick a clip or drop one."


def import_gradio() -> Any:
    """The library, or a UserError that names the extra."""
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"polyspace app needs gradio: pip install 'polyspace[app]' ({error})") from error
    return gradio


def build(explorer: Explorer) -> Any:
    """gradio.Blocks of the whole page; `server.launch` serves it."""
    gr = import_gradio()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as page:
        session = gr.State(None)
        gr.Markdown(f"# {TITLE}")
        gr.HTML(explorer.head_html())
        with gr.Row():
            with gr.Column(scale=1, min_width=270):
                controls = _controls(gr, explorer)
            with gr.Column(scale=4, min_width=620):
                status = gr.HTML(markup.box(markup.line(NOTHING)), elem_id="status")
                panels = _tabs(gr, explorer)
        _wire(gr, explorer, session, controls, status, panels)
    return page.queue(default_concurrency_limit=1, max_size=32)


def _controls(gr: Any, explorer: Explorer) -> dict[str, Any]:
    names = list(explorer.library.clips)
    made = {"clip": gr.Dropdown(names, value=None, label=f"clip ({len(names)} to pick from)", elem_id="clip")}
    made["file"] = gr.File(
        label="or drop a video", file_types=list(VIDEO_ENDINGS), type="filepath", elem_id="file", height=130
    )
    t, h, w = explorer.ps.bundle.card.grid
    most = t * h * w
    if explorer.chooses:
        made["content"] = gr.Checkbox(True, label="the content decides how many tokens", elem_id="content")
        start = explorer.ps.bundle.card.num_chunks or max(1, most // 4)
    else:
        words = f"{explorer.ps.student} does not choose its tokens: every cell is one, so there is no budget to set."
        gr.HTML(markup.box(markup.line(words, "soft")))
        made["content"] = gr.Checkbox(True, visible=False)
        start = most
    made["budget"] = gr.Slider(
        1, max(2, most), start, step=1, label="budget (tokens a clip)", interactive=False, elem_id="budget"
    )
    return made


def _tabs(gr: Any, explorer: Explorer) -> dict[str, Any]:
    steps = explorer.ps.bundle.card.grid[0]
    made: dict[str, Any] = {}
    with gr.Tab("Chunks"):
        made["strip"] = gr.HTML("", elem_id="strip")
        made["step"] = gr.Slider(
            1, max(2, steps), 1, step=1, label="step of time", interactive=steps > 1, elem_id="step"
        )
        made["picture"] = gr.HTML("", elem_id="picture")
    with gr.Tab("Neighbours"):
        made["columns"] = gr.HTML("", elem_id="columns")
        names = [source.name for source in explorer.sources]
        made["space"] = gr.Dropdown(
            names, value=names[0] if names else None, label="space in detail", visible=bool(names), elem_id="space"
        )
        made["detail"] = gr.HTML("", elem_id="detail")
    with gr.Tab("Classes"):
        made["classes"] = gr.HTML("", elem_id="classes")
    with gr.Tab("Text search"):
        _text_tab(gr, explorer)
    with gr.Tab("Planning"):
        _planning_tab(gr, explorer)
    return made


def _text_tab(gr: Any, explorer: Explorer) -> None:
    if not explorer.text_sources:
        gr.HTML(markup.box(markup.line(explorer.no_text)), elem_id="found")
        return
    names = [source.name for source in explorer.text_sources]
    with gr.Row():
        asked = gr.Textbox(label="clips like these words", placeholder="a red square moves left", elem_id="asked")
        where = gr.Dropdown(names, value=names[0], label="index", visible=len(names) > 1)
    go = gr.Button("Search", variant="primary", elem_id="search")
    found = gr.HTML("", elem_id="found")

    def search(text: str, name: str) -> str:
        return told(lambda: explorer.search_html(text, name))

    for event in (go.click, asked.submit):
        event(search, [asked, where], found, **_model())


def _planning_tab(gr: Any, explorer: Explorer) -> None:
    if explorer.world is None:
        gr.HTML(markup.box(markup.line(explorer.no_world)), elem_id="rollout")
        return
    tasks = explorer.tasks
    gr.HTML(markup.box(markup.line(explorer.world.sentence())))
    with gr.Row(visible=bool(tasks)):
        task = gr.Dropdown(tasks, value=tasks[0] if tasks else None, label="task")
        seed = gr.Number(0, precision=0, minimum=0, label="random start and goal (number)")
    go = gr.Button("Plan" if tasks else "Imagine", variant="primary", elem_id="plan")
    out = gr.HTML("", elem_id="rollout")
    go.click(lambda task, seed: told(lambda: explorer.rollout_html(task, seed)), [task, seed], out, **_model())


def _model() -> dict[str, Any]:
    """Events that run a model wait for one another."""
    return {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}


def _wire(
    gr: Any, explorer: Explorer, session: Any, controls: dict[str, Any], status: Any, panels: dict[str, Any]
) -> None:
    clip, file, content, budget = (controls[key] for key in ("clip", "file", "content", "budget"))
    strip, step, picture = (panels[key] for key in ("strip", "step", "picture"))
    columns, space, detail = (panels[key] for key in ("columns", "space", "detail"))

    def open_clip(path: Path, name: str, by_content: bool, tokens: int, number: int) -> tuple[Any, ...]:
        made: list[Opened] = []

        def shown() -> str:
            made.append(explorer.open(path, name, None if by_content else int(tokens)))
            return markup.box(markup.line(name, "head"), markup.line(made[0].view.sentence()))

        words = told(shown)
        opened = made[0] if made else None
        return opened, words, *draw(opened, number)

    def draw(opened: Opened | None, number: int) -> tuple[str, str]:
        if opened is None:
            return "", ""
        at = min(max(int(number), 1), opened.view.steps) - 1
        return markup.strip_html(opened.view, at), markup.step_html(opened.view, at)

    def pick(name: str | None, by_content: bool, tokens: int, number: int) -> tuple[Any, ...]:
        if name not in explorer.library.clips:
            return None, markup.box(markup.line(NOTHING)), "", ""
        return open_clip(explorer.library.clips[name], name, by_content, tokens, number)

    def upload(place: str | None, by_content: bool, tokens: int, number: int) -> tuple[Any, ...]:
        if place is None:
            return None, markup.box(markup.line(NOTHING)), "", ""
        return open_clip(Path(place), Path(place).name, by_content, tokens, number)

    def again(opened: Opened | None, by_content: bool, tokens: int, number: int) -> tuple[Any, ...]:
        if opened is None:
            return None, gr.skip(), gr.skip(), gr.skip()
        return open_clip(opened.path, opened.name, by_content, tokens, number)

    def rest(opened: Opened | None, name: str | None) -> tuple[str, str, str]:
        if opened is None:
            return "", "", ""
        return (
            told(lambda: explorer.neighbours_html(opened)),
            told(lambda: explorer.detail_html(opened, name)),
            told(lambda: explorer.classes_html(opened)),
        )

    def switch(opened: Opened | None, name: str | None) -> str:
        return "" if opened is None else told(lambda: explorer.detail_html(opened, name))

    shown, given = [session, status, strip, picture], [content, budget, step]
    light = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    content.input(lambda free: gr.update(interactive=not free), content, budget, **light)
    latest = {"trigger_mode": "always_last", "show_progress": "minimal"}
    clip.input(lambda: None, None, file, **light)
    file.upload(lambda: None, None, clip, **light)
    events = (
        clip.input(pick, [clip, *given], shown, **_model()),
        file.upload(upload, [file, *given], shown, **_model()),
        file.clear(lambda: (None, markup.box(markup.line(NOTHING)), "", ""), None, shown, api_visibility="private"),
        content.input(again, [session, *given], shown, **_model()),
        budget.change(again, [session, *given], shown, **_model(), **latest),
    )
    for event in events:
        event.then(rest, [session, space], [columns, detail, panels["classes"]], **_model())
    space.input(switch, [session, space], detail, **_model())
    step.change(draw, [session, step], [strip, picture], api_visibility="private", concurrency_limit=4, **latest)
