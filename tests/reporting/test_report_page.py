"""The report in headless Chromium: desk and phone, light and dark, and on paper."""

import base64
import io
import re

import pytest
from PIL import Image
from selenium.webdriver.common.by import By

from tests.browser import (
    THEMES,
    WIDTHS,
    chromium,
    cut_elements,
    faint_texts,
    find,
    look,
    needs_chromium,
)
from tests.reporting.conftest import render

pytestmark = needs_chromium

# The size of the texts of a plot, in pixels of the page.
TEXT_PIXELS = """
return [...document.querySelectorAll("svg text")].flatMap((text) => {
  const svg = text.ownerSVGElement, width = svg.getBoundingClientRect().width;
  const scale = width / svg.viewBox.baseVal.width;
  return width ? [parseFloat(getComputedStyle(text).fontSize) * scale] : [];
});
"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def report(eval_set, evaluated, tmp_path_factory):
    """The address of a report with 18 labels, cases and thumbnails."""
    picture = io.BytesIO()
    Image.new("L", (608, 200), 90).save(picture, "JPEG")
    html = render(eval_set, evaluated, num_retrievals=4, thumbnail=picture.getvalue())
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html)
    return path.as_uri()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_or_too_faint_or_too_small(browser, report, width, theme):
    look(browser, width=width, theme=theme)
    browser.get(report)
    browser.execute_script(
        "document.querySelectorAll('details').forEach((d) => { d.open = true; })"
    )
    assert cut_elements(browser, ".card, .published, .query, article, figure, .map, dd, dt") == []
    assert faint_texts(browser) == []
    for tab in ("roc", "pr", "calibration"):
        browser.execute_script(f"document.getElementById('show-{tab}').click()")
        sizes = browser.execute_script(TEXT_PIXELS)
        assert len(sizes) > 40 and min(sizes) >= 11
    if width < 600:
        targets = browser.find_elements(By.CSS_SELECTOR, "summary, .tabs > label, nav a, select")
        assert min(target.size["height"] for target in targets) >= 40


def test_colors_follow_the_theme(browser, report):
    grounds = []
    for theme in THEMES:
        look(browser, width=1280, theme=theme)
        browser.get(report)
        panel = find(browser, ".panel").value_of_css_property("background-color")
        curve = browser.execute_script(
            "const curve = document.querySelector('svg path[style*=\"stroke: var\"]');"
            "return getComputedStyle(curve).stroke"
        )
        grounds.append((panel, curve))
    (light, light_curve), (dark, dark_curve) = grounds
    assert light == "rgba(255, 255, 255, 1)" != dark and light_curve != dark_curve


def test_a_print_has_all_cases_on_few_pages(browser, report):
    look(browser, width=1280, theme="dark")  # paper is light
    browser.get(report)
    browser.execute_script(
        "addEventListener('beforeprint', () => { window.cases = "
        "[document.querySelectorAll('.cases details').length, "
        " document.querySelectorAll('.cases details[open]').length] })"
    )
    pdf = base64.b64decode(browser.print_page())
    assert browser.execute_script("return cases") == [17, 17]
    assert len(re.findall(rb"/Type /Page\b", pdf)) <= 10
    assert not browser.find_elements(By.CSS_SELECTOR, ".cases details[open]"), "closed again"
