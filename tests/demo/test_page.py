"""The page in a browser: a scan goes up, is looked at, asked about and compared."""

import shutil
import threading

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from data_pipelines.reports import LABELS
from data_pipelines.sources.phantoms import write_samples
from tests.demo_server import served

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
SECONDS = 30

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver (apt install chromium-driver)"
)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = write_samples(tmp_path_factory.mktemp("samples"), count=3, seed=0).parent
    return sorted(folder.glob("*.nii.gz"))


@pytest.fixture(scope="module")
def page(scans, tmp_path_factory):
    with served(tmp_path_factory.mktemp("page"), scans) as page:
        yield page


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_window_size(1280, 940)
    yield driver
    driver.quit()


def wait(browser, condition):
    return WebDriverWait(browser, SECONDS).until(condition)


def find(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def pixels(browser, name):
    """The picture of a canvas."""
    return browser.execute_script(f"return document.getElementById('{name}').toDataURL()")


def shown(browser):
    """The findings on the page, name -> percent."""
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#findings button')].map("
        "(row) => [row.dataset.finding, row.querySelector('.value').textContent])"
    )
    return {name: float(value.split()[0]) for name, value in rows}


def bad_scan(scans):
    bad = scans[0].parent / "bad.nii"
    bad.write_bytes(b"none")
    return bad


def test_a_visit(browser, page, scans):
    browser.get(page.address)
    wait(browser, lambda b: "Drop a chest CT" in find(b, "#empty").text)
    assert "Not a medical device" in find(browser, "header").text
    assert "is deleted when it has been read" in find(browser, "#empty").text

    # a bad scan is a line, and a good one can follow it
    find(browser, "#file").send_keys(str(bad_scan(scans)))
    wait(browser, lambda b: "damaged or no NIfTI file" in find(b, "#status").text)
    find(browser, "#file").send_keys(str(scans[1]))
    wait(browser, lambda b: find(b, "#study").is_displayed())
    volume = page.model.prepare(scans[1]).volume
    expected = page.model.detect(volume[None])[0]
    found = shown(browser)
    for name, probability in zip(LABELS, expected, strict=True):
        assert found[name] == pytest.approx(100 * probability, abs=0.51)
    assert list(found.values()) == sorted(found.values(), reverse=True)

    # slices move by wheel, slider and keys; windows change what is seen
    before = pixels(browser, "axial")
    axial = find(browser, "#axial")
    axial.send_keys(Keys.ARROW_UP, Keys.ARROW_UP)
    assert find(browser, "#axial-at").text == "15 / 24"
    moved = pixels(browser, "axial")
    assert moved != before
    find(browser, "#axial-slice").send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert pixels(browser, "axial") == before
    webdriver.ActionChains(browser).scroll_from_origin(
        webdriver.common.actions.wheel_input.ScrollOrigin.from_element(axial), 0, -120
    ).perform()
    wait(browser, lambda b: find(b, "#axial-at").text == "14 / 24")
    coronal = pixels(browser, "coronal")
    find(browser, "[data-low='-300']").click()
    assert pixels(browser, "coronal") != coronal

    # a map is shown, and hidden again
    plain = pixels(browser, "sagittal")
    row = find(browser, "#findings button")
    name = row.get_attribute("data-finding")
    row.click()
    wait(browser, lambda b: find(b, "#scale").is_displayed())
    assert find(browser, "[aria-pressed=true]").get_attribute("data-finding") == name
    column = LABELS.index(name)
    probability = expected[column]
    logit = np.log(probability / (1 - probability))
    assert f"{logit:+.2f} in all" in find(browser, "#about-map").text
    assert pixels(browser, "sagittal") != plain
    find(browser, "#findings [aria-pressed=true]").click()
    wait(browser, lambda b: not find(b, "#scale").is_displayed())

    # a finding in one's own words
    find(browser, "#question").send_keys("coronary stent", Keys.ENTER)
    wait(browser, lambda b: "coronary stent" in shown(b))
    wait(browser, lambda b: find(b, "#scale").is_displayed())

    # similar cases, and cases by words; a report stays text
    wait(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#hits img")) == len(scans))
    first = find(browser, "#hits li")
    assert scans[1].name in first.text and "1.000" in first.text and "<b>Report</b>" in first.text
    wait(
        browser,
        lambda b: b.execute_script(
            "return [...document.querySelectorAll('#hits img')].every((i) => i.naturalWidth > 0)"
        ),
    )
    find(browser, "#words").send_keys("Emphysema.", Keys.ENTER)
    wait(browser, lambda b: "Emphysema" in find(b, "#cases-title").text)
    find(browser, "details summary").click()
    assert "header" in find(browser, "#provenance").text

    assert not list(page.folder.iterdir())
    told = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert told == []


def test_of_two_scans_the_later_is_shown(browser, page, scans):
    browser.get(page.address)
    wait(browser, lambda b: "Drop a chest CT" in find(b, "#empty").text)
    browser.execute_script(
        "window.names = []; const name = document.getElementById('name');"
        "new MutationObserver(() => names.push(name.textContent)).observe(name, {childList: true})"
    )
    go = threading.Event()
    busy = threading.Thread(target=page.analyses.encode_text, args=(lambda *_: go.wait(30), ""))
    busy.start()
    for scan in scans[:2]:
        find(browser, "#file").send_keys(str(scan))
    go.set()
    busy.join()
    wait(browser, lambda b: find(b, "#name").text == scans[1].name)
    assert browser.execute_script("return names") == [scans[1].name]
    wait(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#hits img")) == len(scans))

    # what was found for it goes with it
    find(browser, "#file").send_keys(str(bad_scan(scans)))
    wait(browser, lambda b: "damaged or no NIfTI file" in find(b, "#status").text)
    assert find(browser, "#cases-title").text == "Cases"
    assert not browser.find_elements(By.CSS_SELECTOR, "#hits li")


def test_a_page_that_keeps_uploads_says_so(browser, page, monkeypatch):
    monkeypatch.setattr(page.analyses, "keep_uploads", True)
    browser.get(page.address)
    wait(browser, lambda b: "It stays on this machine." in find(b, "#empty").text)
