"""A report in a browser: it opens at once, asks for nothing, and shows a clip where one points at its dot."""

import json
import time

import pytest

from polyspace.commands.report import ReportConfig, report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def opened(made, browser, tmp_path_factory):
    path = report(ReportConfig(run_dir=made, out=tmp_path_factory.mktemp("r") / "page.html", device="cpu"), "")
    browser.get_log("performance")
    browser.get(path.as_uri())
    return browser


def test_it_asks_for_no_file_and_nothing_fails(opened):
    sent = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"}
    assert urls and all(url.startswith(("file:", "data:")) for url in urls), urls
    assert len([url for url in urls if url.startswith("file:")]) == 1
    assert not [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"]


def test_pointing_at_a_dot_shows_its_clip_and_marks_it_in_every_space(opened):
    from selenium.webdriver import ActionChains

    dot = opened.find_elements("css selector", ".maps circle")[3]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", dot)
    ActionChains(opened).move_to_element(dot).perform()
    tip = opened.find_element("css selector", ".tip")
    end = time.monotonic() + 10
    while not tip.is_displayed() and time.monotonic() < end:
        time.sleep(0.05)
    number = opened.find_elements("css selector", "circle.hot")[0].get_attribute("data-i")
    hot = opened.find_elements("css selector", "circle.hot")
    assert len(hot) == len(opened.find_elements("css selector", ".maps svg")) and tip.text
    assert {c.get_attribute("data-i") for c in hot} == {number}
    thumb = tip.find_element("css selector", ".thumb")
    assert thumb.value_of_css_property("background-image").startswith('url("data:image/jpeg')


def test_nothing_is_wider_than_the_window_even_on_a_telephone(opened):
    for width in (1300, 420):
        opened.set_window_size(width, 900)
        wide = opened.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 1, width
    opened.set_window_size(1300, 1000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_figures_stand_out_from_the_page(opened, scheme):
    feature = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
    found = opened.execute_script(
        "const g = document.querySelector('figure > svg g'); const s = getComputedStyle(document.body);"
        "return [s.color, s.backgroundColor, getComputedStyle(g).color]"
    )
    ink, paper, drawn = ([int(v) for v in c[c.index("(") + 1 : -1].split(",")[:3]] for c in found)
    assert abs(sum(ink) - sum(paper)) > 450 and ink == drawn
    assert (sum(paper) < 200) == (scheme == "dark")


def test_saved_numbers_are_json(opened):
    links = opened.find_elements("css selector", "a[download]")
    script = "return fetch(arguments[0]).then(r => r.json()).then(d => typeof d)"
    assert len(links) > 8
    assert all(opened.execute_script(script, link.get_attribute("href")) == "object" for link in links)
