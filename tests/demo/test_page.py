"""The page in headless Chromium: upload, slices, maps, questions, similar cases."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from data_pipelines.reports import LABELS
from data_pipelines.sources.phantoms.layout import write_samples
from tests.demo_server import REPORT, served

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
    assert "is deleted as soon as it has been read" in find(browser, "#empty").text

    # a bad scan is a line, and a good one can follow it
    find(browser, "#file").send_keys(str(bad_scan(scans)))
    wait(browser, lambda b: "not a scan but" in find(b, "#status").text)
    find(browser, "#file").send_keys(str(scans[1]))
    wait(browser, lambda b: find(b, "#exam").is_displayed())
    volume = page.model.prepare(scans[1]).volume
    expected = page.model.detect(volume[None])[0]
    percent = shown(browser)
    for name, probability in zip(LABELS, expected, strict=True):
        assert percent[name] == pytest.approx(100 * probability, abs=0.51)
    assert list(percent.values()) == sorted(percent.values(), reverse=True)

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
    assert f"sum {logit:+.2f}" in find(browser, "#scale-unit").text
    assert pixels(browser, "sagittal") != plain
    find(browser, "#findings [aria-pressed=true]").click()
    wait(browser, lambda b: not find(b, "#scale").is_displayed())

    # a finding in one's own words
    find(browser, "#question").send_keys("coronary stent", Keys.ENTER)
    wait(browser, lambda b: "coronary stent" in shown(b))
    wait(browser, lambda b: find(b, "#scale").is_displayed())

    # similar cases, and text search; a report stays text
    wait(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#hits img")) == len(scans))
    first = find(browser, "#hits li")
    assert scans[1].name in first.text and "1.000" in first.text and REPORT in first.text
    wait(
        browser,
        lambda b: b.execute_script(
            "return [...document.querySelectorAll('#hits img')].every((i) => i.naturalWidth > 0)"
        ),
    )
    find(browser, "#query").send_keys("Emphysema.", Keys.ENTER)
    wait(browser, lambda b: "Emphysema" in find(b, "#cases-title").text)
    find(browser, "details summary").click()
    assert "header" in find(browser, "#provenance").text

    assert not list(page.folder.iterdir())
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


def test_warnings_about_a_scan_stand_above_its_findings(browser, page, scans, tmp_path):
    image = nib.load(scans[0])
    shape = (*image.shape[:2], 4 * image.shape[2])
    legs = np.random.default_rng(0).integers(20, 60, shape, np.int16)
    legs[:20] -= 1040
    legs[-20:] -= 1040
    nib.save(nib.Nifti1Image(legs, image.affine), tmp_path / "legs.nii.gz")
    browser.get(page.address)
    find(browser, "#file").send_keys(str(tmp_path / "legs.nii.gz"))
    wait(browser, lambda b: find(b, "#name").text == "legs.nii.gz")
    warnings = [item.text for item in browser.find_elements(By.CSS_SELECTOR, "#warnings li")]
    assert warnings == list(page.model.prepare(tmp_path / "legs.nii.gz").notes)
    assert "outside the grid" in warnings[0] and "no lung inside the grid" in warnings[-1]
    find(browser, "#file").send_keys(str(scans[1]))
    wait(browser, lambda b: find(b, "#name").text == scans[1].name)
    assert "no lung" not in find(browser, "#warnings").text


def test_markup_stays_text(browser, page, scans, tmp_path):
    """In the name of a file, in a question, and in a report."""
    markup = "<script>window.broken = 1<_script><img src=x onerror=window.broken=1>"
    scan = tmp_path / f"{markup}.nii.gz"
    scan.write_bytes(scans[0].read_bytes())
    browser.get(page.address)
    find(browser, "#file").send_keys(str(scan))
    wait(browser, lambda b: find(b, "#name").text == scan.name)
    find(browser, "#question").send_keys(markup, Keys.ENTER)
    wait(browser, lambda b: markup in shown(b))
    find(browser, "#query").send_keys(markup, Keys.ENTER)
    wait(browser, lambda b: markup in find(b, "#cases-title").text)
    # By script, because the results of the search replace the similar cases meanwhile.
    hits = "return document.getElementById('hits').textContent"
    wait(browser, lambda b: REPORT in b.execute_script(hits))
    assert browser.execute_script("return window.broken") is None
    assert not browser.find_elements(By.CSS_SELECTOR, "main script, #cases script, [onerror]")


def test_the_later_of_two_uploads_is_shown(browser, page, scans):
    browser.get(page.address)
    wait(browser, lambda b: "Drop a chest CT" in find(b, "#empty").text)
    browser.execute_script(
        "window.names = []; const name = document.getElementById('name');"
        "new MutationObserver(() => names.push(name.textContent)).observe(name, {childList: true})"
    )
    with page.busy_worker():
        for scan in scans[:2]:
            find(browser, "#file").send_keys(str(scan))
    wait(browser, lambda b: find(b, "#name").text == scans[1].name)
    assert browser.execute_script("return names") == [scans[1].name]
    wait(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#hits img")) == len(scans))

    # its similar cases leave the page with it
    find(browser, "#file").send_keys(str(bad_scan(scans)))
    wait(browser, lambda b: "not a scan but" in find(b, "#status").text)
    assert find(browser, "#cases-title").text == "Cases"
    assert not browser.find_elements(By.CSS_SELECTOR, "#hits li")


def test_kept_uploads_are_announced(browser, page, monkeypatch):
    monkeypatch.setattr(page.analyses, "keep_uploads", True)
    browser.get(page.address)
    wait(browser, lambda b: "It stays on this machine." in find(b, "#empty").text)
