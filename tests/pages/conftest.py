"""A real browser for the tests of the pages: Debian's Chromium, headless, driven by selenium.

browser.open(page, width=390, scheme="dark")    shows HTML from disk, as a reader would open it
browser.show(address, ...)                      the same with a page that is somewhere
browser.run("return ...")                       JavaScript in the page; the pages themselves have none
browser.messages(), browser.requests()          what the console said and what was asked for since `open`
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-dev-shm-usage"),
    *("disable-background-networking", "disable-component-update", "disable-sync", "hide-scrollbars"),
)


@dataclass
class Browser:
    """A window on one page after another."""

    driver: Chrome
    directory: Path

    def open(self, content: str, *, width: int = 1180, scheme: str = "light", media: str = "screen") -> None:
        page = self.directory / "report.html"
        page.write_text(content, encoding="utf-8")
        self.show(page.as_uri(), width=width, scheme=scheme, media=media)

    def show(self, address: str, *, width: int = 1180, scheme: str = "light", media: str = "screen") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.messages(), self.requests()
        self.driver.get(address)

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def messages(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
    try:
        yield Browser(driver, tmp_path_factory.mktemp("page"))
    finally:
        driver.quit()
