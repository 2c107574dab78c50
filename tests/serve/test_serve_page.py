"""The chat page in a real browser: it streams, stops, keeps conversations, and fits a phone, light and dark."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.engine.engine import Engine

webdriver = pytest.importorskip("selenium.webdriver")
if not shutil.which("chromium") or not shutil.which("chromedriver"):
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)
# Without these, the browser asks hosts of its maker's for things at every start.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update"),
    *("--disable-background-networking", "--disable-sync", "--hide-scrollbars"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, served: Any) -> Page:
    browser.set_window_size(1100, 720)
    browser.get(served.url)
    browser.execute_script("localStorage.clear(); sessionStorage.clear()")
    browser.get(served.url)
    return Page(browser)


class Page:
    """The page as a person uses it."""

    def __init__(self, browser: Any):
        self.browser = browser

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        # In one step: the page draws an answer anew with each of its parts.
        script = "return [...document.querySelectorAll(arguments[0])].map((found) => found.innerText.trim())"
        return list(self.browser.execute_script(script, selector))

    def until(self, true: Callable[[], Any]) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 20, 0.02).until(lambda _: true())

    def ask(self, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        self.one("#input").send_keys(text.replace("\n", Keys.SHIFT + Keys.ENTER + Keys.NULL), Keys.ENTER)

    def answered(self, count: int) -> None:
        self.until(lambda: len(self.texts(".assistant .note")) == count and self.one("#send").is_displayed())

    def setting(self, name: str, value: str) -> None:
        if not self.one("#settings").is_displayed():
            self.one("#open-settings").click()
        field = self.one(f"#{name}")
        field.clear()
        field.send_keys(value)
        # A change is noticed when the field is left.
        self.one("#model").click()
        self.browser.execute_script("document.activeElement.blur()")

    def shot(self, name: str, directory: Path) -> Path:
        """A picture, for whoever wants to look."""
        path = directory / f"{name}.png"
        assert self.browser.save_screenshot(str(path))
        return path


def test_a_conversation(page: Page, served: Any, tmp_path: Path) -> None:
    page.until(lambda: page.one("#model").text == "demo")
    page.setting("max_tokens", "12")
    page.setting("system", "You tell stories.")
    page.ask("Tell me a story about a dog.")
    page.answered(1)
    messages = [{"role": "system", "content": "You tell stories."}]
    messages.append({"role": "user", "content": "Tell me a story about a dog."})
    body = {"messages": messages, "max_tokens": 12}
    expected = served.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert page.texts(".assistant .body") == [expected.strip()]
    assert page.texts(".assistant .note")[0].startswith("12 tokens")
    page.ask("And a cat?")
    page.answered(2)
    assert page.texts(".user .body") == ["Tell me a story about a dog.", "And a cat?"]
    # It is all there after a reload, and a second conversation stands beside it.
    page.browser.refresh()
    assert len(page.texts(".assistant .body")) == 2
    page.one("#new").click()
    assert page.texts(".message") == []
    assert page.texts("#list .title") == ["New chat", "Tell me a story about a dog."]
    page.browser.find_elements("css selector", "#list .title")[1].click()
    assert len(page.texts(".message")) == 4
    page.shot("wide", tmp_path)
    page.browser.find_elements("css selector", "#list .remove")[1].click()
    assert page.texts("#list .title") == ["New chat"]
    severe = [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []


def test_stop(page: Page, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda engine: (time.sleep(0.05), step(engine))[1])
    page.setting("max_tokens", "400")
    page.ask("Tell me a story about a dog.")
    page.until(lambda: len("".join(page.texts(".assistant .body"))) > 20)
    page.one("#stop").click()
    page.answered(1)
    assert page.texts(".assistant .note") == ["stopped"]
    page.until(lambda: served.service.admission.open == 0)


def test_an_error_is_shown_and_text_is_escaped(page: Page) -> None:
    page.setting("temperature", "-3")
    page.ask("<img src=x onerror=alert(1)> ```js\nlet a;``` <b>x</b>")
    page.until(lambda: page.texts(".assistant .error"))
    assert "temperature" in page.texts(".assistant .error")[0]
    assert "<b>x</b>" in page.texts(".user .body")[0] and page.texts(".user pre") == ["let a;"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(page: Page, scheme: str, tmp_path: Path) -> None:
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    metrics = {"width": 390, "height": 760, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.browser.refresh()
        page.setting("max_tokens", "20")
        page.one("#open-settings").click()
        page.ask("Tell me a story about a dog and a very-long-word-" + "x" * 80)
        page.answered(1)
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 390
        colors = page.browser.execute_script(
            "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        )
        bright = [sum(map(int, color.strip("rgb()").split(","))) for color in colors]
        assert (bright[0] > bright[1]) == (scheme == "dark")
        assert not page.one("#side").is_displayed()
        page.shot(f"phone-{scheme}", tmp_path)
        page.one("#menu").click()
        page.one("#new").click()
        assert not page.one("#side").is_displayed() and page.texts(".message") == []
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_brings_its_own_rules(served: Any) -> None:
    for path, kind in (("/", "text/html"), ("/chat.js", "javascript"), ("/chat.css", "text/css")):
        answer = served.get(path)
        assert (
            kind in answer.headers["content-type"] and "default-src 'none'" in answer.headers["content-security-policy"]
        )
        assert "http://" not in answer.text and "https://" not in answer.text
