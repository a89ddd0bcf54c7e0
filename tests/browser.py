"""Pages in headless Chromium: at the width of a desk and of a phone, in light and dark colors."""

import contextlib
import shutil
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
SECONDS = 30
WIDTHS = (1280, 390)
THEMES = ("light", "dark")

needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver (apt install chromium-driver)"
)

# Texts whose contrast with the ground below them is under 4.5, or 3 if they are large (WCAG AA).
FAINT_TEXTS = """
const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
const linear = (v) => v <= 10 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
const ground = (node) => {
  for (; node; node = node.parentElement) {
    const [r, g, b, alpha = 1] = numbers(getComputedStyle(node).backgroundColor);
    if (alpha > .99) return [r, g, b];
  }
  return [255, 255, 255];
};
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), faint = new Set();
while (texts.nextNode()) {
  const text = texts.currentNode.textContent.trim(), node = texts.currentNode.parentElement;
  if (!text || !node.getBoundingClientRect().width) continue;
  if (!node.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
  const style = getComputedStyle(node), size = parseFloat(style.fontSize);
  const isLarge = size >= 24 || (size >= 18.6 && style.fontWeight >= 700);
  const color = numbers(node.closest("svg") ? style.fill : style.color);
  const [low, high] = [luminance(color), luminance(ground(node))].sort((a, b) => a - b);
  const contrast = (high + .05) / (low + .05);
  if (contrast < (isLarge ? 3 : 4.5)) faint.add(`${contrast.toFixed(1)}: ${text.slice(0, 40)}`);
}
return [...faint];
"""
# Elements that reach over the right edge of the page or of what holds them.
CUT = """
const isCut = (node) => node.clientWidth && node.scrollWidth > node.clientWidth + 1;
const describe = (node) =>
  `${node.className || node.id || node.tagName}: ${node.scrollWidth} > ${node.clientWidth}`;
const page = document.scrollingElement;
return page.scrollWidth > page.clientWidth ? [describe(page)]
  : [...document.querySelectorAll(arguments[0])].filter(isCut).map(describe);
"""


@contextlib.contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_window_size(1280, 940)
    yield driver
    driver.quit()


def look(browser: webdriver.Chrome, *, width: int, theme: str = "light") -> None:
    """Makes the page as wide as a desk's or a phone's, in light or dark colors."""
    size = {"width": width, "height": 940 if width > 600 else 844}
    metrics = size | {"deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": theme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def wait(browser: webdriver.Chrome, condition):
    return WebDriverWait(browser, SECONDS).until(condition)


def find(browser: webdriver.Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def cut_elements(browser: webdriver.Chrome, selector: str) -> list[str]:
    """What is wider than the page, or among `selector` wider than its own box."""
    return browser.execute_script(CUT, selector)


def faint_texts(browser: webdriver.Chrome) -> list[str]:
    return browser.execute_script(FAINT_TEXTS)
