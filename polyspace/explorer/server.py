"""The page served: to this machine alone by default, nothing fetched from elsewhere, no file given out but the page's.

Uploads lie in a temporary folder that goes when the server stops.
"""

import ipaddress
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from polyspace.explorer.markup import STYLE
from polyspace.explorer.page import build, import_gradio
from polyspace.explorer.session import Explorer
from polyspace.utils.errors import UserError

SETTINGS = {  # read by gradio and the libraries below it while they are imported
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
# scripts of the page are its own; its templates need eval
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI: every answer carries `HEADERS`, so that a browser fetches nothing from elsewhere; on a loopback address
    only requests that name it are answered, so that no other site's name can be pointed at the page."""

    def __init__(self, app: Any, hosts: frozenset[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if self.hosts is not None and host.rsplit(":", 1)[0].strip("[]") not in self.hosts:
            await send({"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"this address is not the page's"})
            return

        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
                message = message | {"headers": [*message.get("headers", []), *more]}
            await send(message)

        await self.app(scope, receive, told)


@contextmanager
def serve(explorer: Explorer, host: str, port: int, max_upload: int) -> Iterator[str]:
    """The page at an address while the body runs; `max_upload` in bytes; port 0 takes a free one. UserError where the
    port is taken or gradio is missing."""
    with tempfile.TemporaryDirectory(prefix="polyspace_app_") as folder:
        direct = ",".join(filter(None, (os.environ.get("NO_PROXY"), host, "localhost")))
        os.environ |= SETTINGS | {"GRADIO_TEMP_DIR": folder, "NO_PROXY": direct, "no_proxy": direct}
        gr = import_gradio()
        from starlette.middleware import Middleware

        hosts = frozenset({host, "127.0.0.1", "localhost", "::1"}) if is_loopback(host) else None
        page = build(explorer)
        theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port or _free_port(host),
                share=False,
                inbrowser=False,
                quiet=True,
                prevent_thread_lock=True,
                show_error=False,
                allowed_paths=[],
                max_file_size=max_upload,
                enable_monitoring=False,
                run_history=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                footer_links=[],
                theme=theme,
                css=STYLE,
                app_kwargs={"middleware": [Middleware(Guard, hosts=hosts)]},
                _frontend=False,  # else a machine that answers slowly once is told to share the page
            )
        except OSError as error:
            raise UserError(f"--host {host} --port {port} can't be served from ({error})") from error
        try:
            yield address
        finally:
            page.close(verbose=False)


def _free_port(host: str) -> int:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as place:
        place.bind((host, 0))
        return int(place.getsockname()[1])


def wait() -> None:
    """Until Ctrl-C, or the end that a service manager asks for."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(1.0):
        pass
