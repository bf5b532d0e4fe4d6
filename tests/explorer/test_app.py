"""`polyspace app` as a visitor has it: the command serves, a browser without a head looks, Ctrl-C ends it."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from polyspace.commands.app import main as app_main
from polyspace.config import run_command

pytest.importorskip("gradio", reason="the page needs gradio (extra app)")
pytestmark = pytest.mark.slow
PATIENCE = 90  # seconds; a busy machine is slow


def start(line: str, cwd: Path, temporary: Path) -> subprocess.Popen:
    """`polyspace app …`, its temporary files in a folder of their own."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    words = [sys.executable, "-m", "polyspace.cli", "app", *shlex.split(line)]
    return subprocess.Popen(words, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def address(server: subprocess.Popen) -> str:
    said = []
    for text in server.stdout:
        said.append(text)
        if text.startswith("http"):
            return text.strip()
    raise AssertionError("".join(said))


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


@pytest.fixture(scope="module")
def served(ps, made, tmp_path_factory):
    """(address, folder of temporary files, everything that the server says at its end)."""
    place = tmp_path_factory.mktemp("app")
    clips = sorted((made / "data").rglob("*.avi"))[:8]
    (place / "clips").mkdir()
    (place / "temporary").mkdir()
    for path in clips:
        shutil.copyfile(path, place / "clips" / path.name)
    ps.index(sorted((place / "clips").iterdir()), place / "language", "language")
    store = made / "features" / "features_hmdb51_train.json"
    line = f"--bundle {made}/bundle --index {store} {place}/language --clips {place}/clips --run {made}/outputs"
    server = start(f"{line} --port 0 --device cpu --max_upload_mb 1", made, place / "temporary")
    try:
        yield address(server), place
    finally:
        server.send_signal(signal.SIGINT)
        rest, _ = server.communicate(timeout=PATIENCE)
        assert server.returncode == 0 and rest.strip() == "closed", rest
        assert not list((place / "temporary").glob("polyspace_app_*"))


class Visitor:
    """The page in a browser, in the words of the tests."""

    def __init__(self, browser, url: str) -> None:
        self.browser = browser
        browser.get(url)
        self.until(lambda: self.all("#clip input"))

    def all(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    def text(self, name: str) -> str:
        script = "const e = document.getElementById(arguments[0]); return e ? e.innerText : ''"
        return self.browser.execute_script(script, name)

    def until(self, true) -> object:
        end = time.monotonic() + PATIENCE
        while not (found := true()):
            assert time.monotonic() < end, self.text("status")
            time.sleep(0.05)
        return found

    def says(self, name: str, *words: str) -> str:
        self.until(lambda: all(word in self.text(name) for word in words))
        return self.text(name)

    def tab(self, name: str) -> None:
        next(b for b in self.all("button[role=tab]") if b.text.strip() == name).click()

    def choose(self, name: str, value: str) -> None:
        box = self.all(f"#{name} input")[0]
        box.click()
        option = self.until(lambda: [o for o in self.all("ul[role=listbox] li") if value in o.text])[0]
        option.click()

    def slide(self, name: str, value: int) -> None:
        """As with the keys: the range's value, then the events of a hand."""
        script = """const e = document.querySelector(arguments[0] + " input[type=range]");
        Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(e, arguments[1]);
        e.dispatchEvent(new Event("input", {bubbles: true})); e.dispatchEvent(new Event("change", {bubbles: true}));
        e.dispatchEvent(new PointerEvent("pointerup", {bubbles: true}))"""
        self.browser.execute_script(script, f"#{name}", str(value))

    def upload(self, path: Path) -> None:
        for button in self.all("#file button[aria-label='Clear'], #file button[aria-label='Remove this file']"):
            button.click()
        self.until(lambda: self.all("#file input[type=file]"))[0].send_keys(str(path))


@pytest.fixture(scope="module")
def visitor(served, browser):
    return Visitor(browser, served[0])


def test_a_clip_is_picked_and_everything_about_it_is_shown(visitor, served, ps):
    visitor.choose("clip", sorted((served[1] / "clips").iterdir())[2].name)
    said = visitor.says("status", "tokens for 27 cells")
    assert ps.look(sorted((served[1] / "clips").iterdir())[2])[1].tokens == int(said.split(" tokens")[0].split()[-1])
    assert len(visitor.all("#strip img")) == 3 and "cells in all" in visitor.says("picture", "cells in all")
    visitor.tab("Neighbours")
    visitor.says("columns", "hnet_vjepa", "videomae", "vivit", "language", "cosine")
    visitor.tab("Classes")
    visitor.says("classes", "Held-out clips chose", "fusion, probability", "%")


def test_the_space_in_detail_is_switched(visitor):
    visitor.tab("Neighbours")
    visitor.says("detail", "clips of a feature store, by cosine.")
    visitor.choose("space", "vivit · features_hmdb51_train")
    visitor.says("detail", "the query is translated", "the teacher's own features")


def test_the_budget_moves_the_number_of_tokens_and_the_step_the_picture(visitor):
    visitor.tab("Chunks")
    visitor.slide("step", 3)
    visitor.says("picture", "first of frames 5–6", "in step 3")
    before = visitor.text("status")
    assert not visitor.all("#budget input[type=range]")[0].is_enabled()
    visitor.all("#content input")[0].click()
    visitor.until(lambda: visitor.all("#budget input[type=range]")[0].is_enabled())
    visitor.slide("budget", 4)
    assert visitor.says("status", "4 tokens for 27 cells, 6.8 times fewer") != before
    visitor.slide("budget", 9)
    visitor.says("status", "9 tokens for 27 cells")
    assert "in step 3" in visitor.text("picture")
    visitor.all("#content input")[0].click()
    visitor.until(lambda: visitor.text("status") == before)


def test_words_find_clips(visitor):
    visitor.tab("Text search")
    visitor.all("#search")[0].click()
    visitor.says("found", "Type what to look for.")
    visitor.all("#asked textarea, #asked input")[0].send_keys("a red square")
    visitor.all("#search")[0].click()
    visitor.says("found", "8 clips of an index, by cosine", ".avi")
    assert len(visitor.all("#found img")) == 24


def test_a_world_model_that_is_not_of_pusht_shows_its_error(visitor):
    visitor.tab("Planning")
    visitor.all("#plan")[0].click()
    visitor.says("rollout", "imagined latents are")
    assert visitor.all("#rollout img")


def test_a_clip_is_dropped_and_what_is_no_video_gets_a_sentence(visitor, clip, tmp_path):
    visitor.tab("Chunks")
    shutil.copyfile(clip, tmp_path / "mine.avi")
    visitor.upload(tmp_path / "mine.avi")
    visitor.says("status", "mine.avi", "tokens for 27 cells")
    (tmp_path / "text.mp4").write_text("no video at all")
    visitor.upload(tmp_path / "text.mp4")
    assert "Traceback" not in visitor.says("status", "text.mp4 can't be read as a video")
    assert visitor.text("strip").strip() == "" and not visitor.all("#strip img")
    visitor.choose("clip", ".avi")
    visitor.says("status", "tokens for 27 cells")


def test_the_browser_asked_no_other_machine_for_anything(visitor, served):
    asked = []
    for entry in visitor.browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((served[0], "data:", "blob:", "chrome:"))] == []
    faults = [e["message"] for e in visitor.browser.get_log("browser") if "Content Security" in e["message"]]
    assert not faults


def test_no_file_but_the_pages_is_given_out(served, made):
    url, place = served
    clip = next((place / "clips").iterdir())
    for path in ("/etc/passwd", str(clip), f"{place}/../../etc/passwd", str(made / "bundle" / "bundle.json"), __file__):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/"):
            status, _, body = get(f"{url}{route}{path}")
            assert status in (403, 404, 405) and b"root:" not in body, (route, path, status)
    assert get(f"{url}gradio_api/file=http://example.org/x")[0] in (403, 404, 302, 400)


def test_answers_forbid_foreign_sources_and_foreign_names(served):
    status, headers, page = get(served[0])
    found = {key.lower(): value for key, value in headers.items()}
    assert status == 200 and "default-src 'self'" in found["content-security-policy"]
    assert b"fonts.googleapis" not in page and b'"analytics_enabled":false' in page.replace(b" ", b"")
    assert get(served[0], Host="elsewhere.example")[0] == 400


def test_what_is_too_large_or_of_another_kind_is_not_taken(served):
    def post(name: str, size: int) -> int:
        edge = "----edge"
        head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + bytes(size) + f"\r\n--{edge}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        request = urllib.request.Request(f"{served[0]}gradio_api/upload", body, kind)
        try:
            return urllib.request.urlopen(request, timeout=PATIENCE).status
        except urllib.error.HTTPError as error:
            return error.code

    assert post("small.mp4", 1000) == 200 and post("large.mp4", 1_100_000) == 413
    uploaded = list((served[1] / "temporary").rglob("*.mp4"))
    assert any(path.name == "small.mp4" for path in uploaded) and not any(p.name == "large.mp4" for p in uploaded)


def test_bad_flags_are_sentences(made, tmp_path, capsys):
    for line, words in (
        (f"--bundle {tmp_path}/none", "is not a folder"),
        (f"--bundle {made}/bundle --index {tmp_path}", "is not an index"),
        (f"--bundle {made}/bundle --clips {tmp_path}", "holds no videos"),
        (f"--bundle {made}/bundle --port 70000", "--port '70000'"),
        (f"--bundle {made}/bundle --max_upload_mb 0", "--max_upload_mb"),
    ):
        assert run_command(app_main, shlex.split(line)) == 2
        assert words in capsys.readouterr().err


def test_a_port_that_is_taken_and_a_host_for_all_are_said(served, made, tmp_path):
    port = served[0].rstrip("/").rsplit(":", 1)[1]
    server = start(f"--bundle {made}/bundle --port {port} --host 0.0.0.0", made, tmp_path)
    said, _ = server.communicate(timeout=PATIENCE)
    assert server.returncode == 2 and "there is no password" in said
    assert said.strip().splitlines()[-1].startswith(f"error: --host 0.0.0.0 --port {port} can't be served from")
