"""A real browser on `examples/live.py`, which is served by a process of its own: Chromium, driven by selenium."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from websockets.sync.client import connect

EXAMPLES = Path(__file__).parents[2] / "examples"

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
"""What the browser is called, by whom it is packaged."""

SECONDS = 30.0
"""What the browser has for anything."""

OPTIONS = (
    "--headless",
    "--no-sandbox",  # which root can't have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--window-size=1000,800",
)


def find(*names: str) -> str:
    """The path of a program under one of these names; without it the test is skipped, and in CI fails."""
    for name in names:
        if path := shutil.which(name):
            return path
    say = pytest.fail if os.environ.get("CI") else pytest.skip
    return say(f"{names[0]} is not installed: this test drives a real browser")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = find(*CHROMIUM)
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    driver = webdriver.Chrome(options, Service(find("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, serve_process):
    """The example's page, loaded, its WebSocket open."""
    server = serve_process("--app-dir", str(EXAMPLES), "--disconnect-grace", "0.2", "live:app")
    browser.get(server.url)
    assert browser.title == "trigi, live"
    wait(browser).until(
        lambda _: browser.find_element(By.ID, "state").text == "", "the WebSocket is not open"
    )
    return server


def wait(browser) -> WebDriverWait:
    return WebDriverWait(browser, SECONDS, poll_frequency=0.02)


def log(browser) -> list[str]:
    """What the server has told of, the last first."""
    return [line.text for line in browser.find_elements(By.CSS_SELECTOR, "#log li")]


def test_walking_away_from_a_stream_stops_it(browser, page):
    browser.find_element(By.ID, "stream").click()
    wait(browser).until(lambda _: log(browser) == ["stream 1 started"])
    words = browser.find_element(By.CSS_SELECTOR, "article p")
    wait(browser).until(lambda _: words.text.startswith("A nursery was opened,"), "no words arrive")
    assert browser.find_element(By.ID, "count").text == "1"

    browser.find_element(By.CSS_SELECTOR, "article button").click()
    wait(browser).until(
        lambda _: log(browser) == ["stream 1 stopped: the client left", "stream 1 started"], "it goes on"
    )
    assert browser.find_element(By.ID, "count").text == "0"


def test_walking_away_from_a_query_cancels_it(browser, page):
    browser.find_element(By.ID, "query").click()
    wait(browser).until(lambda _: log(browser) == ["query 1 started"])
    browser.find_element(By.CSS_SELECTOR, "article button").click()
    wait(browser).until(lambda _: log(browser) == ["query 1 cancelled", "query 1 started"], "it goes on")


def test_closing_the_tab_cancels_what_it_has_asked_for(browser, page):
    """Seen by another WebSocket client, since the page is gone."""
    with connect("ws" + page.url.removeprefix("http"), proxy=None, open_timeout=SECONDS) as watcher:
        for button, name in (("query", "query 1"), ("stream", "stream 2")):
            browser.find_element(By.ID, button).click()
            wait(browser).until(lambda _, name=name: f"{name} started" in log(browser))
        assert [json.loads(watcher.recv(SECONDS))["event"] for _ in range(2)] == ["started", "started"]

        browser.switch_to.new_window("tab")  # without another tab, the browser would end
        other, first = browser.current_window_handle, browser.window_handles[0]
        browser.switch_to.window(first)
        browser.close()
        browser.switch_to.window(other)

        ends = [json.loads(watcher.recv(SECONDS)) for _ in range(2)]
    assert {(end["kind"], end["number"]): end["event"] for end in ends} == {
        ("query", 1): "cancelled",
        ("stream", 2): "stopped: the client left",
    }


def test_the_page_is_told_when_the_server_stops(browser, page):
    """SIGTERM with a tab open: its WebSocket is closed with 1012, and the process ends well and soon."""
    page.stop()
    wait(browser).until(
        lambda _: browser.find_element(By.ID, "state").text == "(closed with 1012)", "the page was not told"
    )


def test_a_query_of_a_tab_that_stays_does_not_hold_up_the_end_for_ever(browser, serve_process):
    server = serve_process("--app-dir", str(EXAMPLES), "--graceful-timeout", "0.2", "live:app")
    browser.get(server.url)
    browser.find_element(By.ID, "query").click()
    wait(browser).until(lambda _: log(browser) == ["query 1 started"])
    server.stop()
    assert any("of which 1 were cancelled" in line for line in server.stderr)
