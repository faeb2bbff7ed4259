"""The server's page in a headless Chromium, and what a person does and sees there."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.unit.served_app import Served

SECONDS = 30
"""Longest wait for anything; on an idle machine nothing takes a tenth of it."""

_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--window-size=1200,1000",
    # Without these, Chromium calls home at every start.
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Chrome]:
    """Start the Chromium of $CHROMIUM or of the PATH; the test is skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = os.environ.get("CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)
    driver = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium with its chromedriver; `make browser` installs them")
    options = ChromeOptions()
    options.binary_location = binary
    for flag in _FLAGS + (("--no-sandbox",) if os.geteuid() == 0 else ()):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


class Page:
    """One tab, and what a person does and sees in it."""

    def __init__(self, browser: Chrome):
        self.browser = browser

    def open(self, app: Served, *, key: str | None) -> None:
        """Open the page by the address that the server prints, or without a key."""
        self.browser.get(app.url + (f"/#key={key}" if key else "/"))
        form = "ask-form" if key else "key-form"
        until(lambda: self.find(f"#{form}").is_displayed(), f"#{form}")

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def value(self, selector: str) -> str:
        """Return what a field holds."""
        return str(self.find(selector).get_property("value"))

    def type(self, keys: str) -> None:
        """Type where the focus is."""
        self.browser.switch_to.active_element.send_keys(keys)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def tell_browser(self, command: str, **parameters: Any) -> None:
        self.browser.execute_cdp_cmd(command, parameters)

    @property
    def running(self) -> bool:
        return self.run("return document.body.classList.contains('running')")

    def tokens(self, side: str) -> tuple[int, int]:
        """Return the reasoning and answer tokens that one column shows."""
        return int(self.text(f"#{side} .reasoning-tokens")), int(self.text(f"#{side} .answer-tokens"))

    def wait_for_the_end(self) -> str:
        """Return the verdict's headline."""
        until(lambda: not self.running and self.text("#verdict .headline") != "", "the verdict")
        return self.text("#verdict .headline")

    def console(self) -> list[str]:
        """Return what the console complained of since the last call, but for refused requests, which the page words itself."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["source"] != "network"]

    def requested(self) -> set[str]:
        """Return the addresses that any tab asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        return {each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"}


def break_connections(app: Served) -> None:
    """Cut every connection off, as a network that goes away does."""
    for connection in list(app.server.server_state.connections):
        connection.loop.call_soon_threadsafe(connection.transport.abort)  # type: ignore[union-attr]


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {SECONDS} s for {what}"
        time.sleep(0.02)
