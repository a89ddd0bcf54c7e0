"""The page in headless Chromium: upload, slices, maps, questions, similar cases."""

import dataclasses
import re

import nibabel as nib
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from ctclip_jax.demo import scan_view
from ctclip_jax.demo.analysis import MAX_SCANS
from ctclip_jax.inference.calibration import Calibration, Curve
from ctclip_jax.inference.classifiers import Classifier
from ctclip_jax.inference.reference import Reference
from ctclip_jax.reporting import predictions
from data_pipelines.reports import LABELS
from data_pipelines.sources.phantoms.layout import write_samples
from tests.browser import (
    THEMES,
    WIDTHS,
    chromium,
    cut_elements,
    faint_texts,
    find,
    look,
    needs_chromium,
    wait,
)
from tests.demo_server import REPORT, served

pytestmark = needs_chromium


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
    with chromium() as driver:
        yield driver


@pytest.fixture
def desk(browser):
    """The browser at the size of a desk, with the page left before each test."""
    look(browser, width=1280)
    browser.get("about:blank")
    return browser


def pixels(browser, name):
    """The picture of a canvas."""
    return browser.execute_script(f"return document.getElementById('{name}').toDataURL()")


def shown(browser):
    """The findings on the page, name -> value."""
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#findings button')].map("
        "(row) => [row.dataset.finding, row.querySelector('.value').textContent])"
    )
    return dict(rows)


def visit(browser, page):
    """Opens the page and waits for its script."""
    browser.get(page.address)
    wait(browser, lambda b: b.execute_script("return document.getElementById('note').textContent"))


def open_scan(browser, page, scan):
    """Opens the page, and a scan on it."""
    visit(browser, page)
    send(browser, scan)
    wait(browser, lambda b: find(b, "#name").text == scan.name)


def send(browser, path):
    find(browser, "#file").send_keys(str(path))


def ask(browser, finding):
    find(browser, "#question").send_keys(finding, Keys.ENTER)


def count_hits(browser):
    return len(browser.find_elements(By.CSS_SELECTOR, "#hits img"))


def warnings(browser):
    return [item.text for item in browser.find_elements(By.CSS_SELECTOR, "#warnings li")]


def bad_scan(scans):
    bad = scans[0].parent / "bad.nii"
    bad.write_bytes(b"none")
    return bad


def test_a_visit(desk, page, scans):
    visit(desk, page)
    wait(desk, lambda b: "Drop a chest CT" in find(b, "#empty").text)
    assert "Not a medical device" in find(desk, "header").text
    assert "is deleted as soon as it has been read" in find(desk, "#empty").text

    # a bad scan is a line, and a good one can follow it
    send(desk, bad_scan(scans))
    wait(desk, lambda b: "not a scan but" in find(b, "#status").text)
    send(desk, scans[1])
    wait(desk, lambda b: find(b, "#exam").is_displayed())
    assert not find(desk, "#job").is_displayed()
    volume = page.model.prepare(scans[1]).volume
    expected = page.model.detect(volume[None])[0]
    values = shown(desk)
    for name, probability in zip(LABELS, expected, strict=True):
        assert float(values[name]) == pytest.approx(probability, abs=0.0051)
    assert list(values.values()) == sorted(values.values(), reverse=True)
    # nothing says how they compare with other scans, or how often they are right
    assert "%" not in find(desk, "aside").text
    assert "no probability" in find(desk, "#reading").text

    # slices of the scan, not of the model's grid, move by wheel, slider and keys
    shape = nib.load(scans[1]).shape
    middle = [f"{size // 2 + 1} / {size}" for size in shape]
    planes = ("sagittal", "coronal", "axial")
    assert [find(desk, f"#{plane}-at").text for plane in planes] == middle
    before = pixels(desk, "axial")
    axial = find(desk, "#axial")
    axial.send_keys(Keys.ARROW_UP, Keys.ARROW_UP)
    assert find(desk, "#axial-at").text == f"{shape[2] // 2 + 3} / {shape[2]}"
    moved = pixels(desk, "axial")
    assert moved != before
    find(desk, "#axial-slice").send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert pixels(desk, "axial") == before
    webdriver.ActionChains(desk).scroll_from_origin(
        webdriver.common.actions.wheel_input.ScrollOrigin.from_element(axial), 0, -120
    ).perform()
    wait(desk, lambda b: find(b, "#axial-at").text == f"{shape[2] // 2 + 2} / {shape[2]}")
    coronal = pixels(desk, "coronal")
    find(desk, "[data-low='-300']").click()
    assert pixels(desk, "coronal") != coronal

    # a map is shown, and hidden again
    plain = pixels(desk, "sagittal")
    row = find(desk, "#findings button")
    name = row.get_attribute("data-finding")
    row.click()
    wait(desk, lambda b: find(b, "#scale").is_displayed())
    assert find(desk, "[aria-pressed=true]").get_attribute("data-finding") == name
    column = LABELS.index(name)
    probability = expected[column]
    logit = np.log(probability / (1 - probability))
    assert f"sum {logit:+.2f}" in find(desk, "#scale-unit").text
    assert pixels(desk, "sagittal") != plain
    find(desk, "#findings [aria-pressed=true]").click()
    wait(desk, lambda b: not find(b, "#scale").is_displayed())

    # a finding in one's own words
    ask(desk, "coronary stent")
    wait(desk, lambda b: "coronary stent" in shown(b))
    wait(desk, lambda b: find(b, "#scale").is_displayed())

    # similar cases, and text search; a report stays text
    wait(desk, lambda b: count_hits(b) == len(scans))
    first = find(desk, "#hits li")
    assert scans[1].name in first.text and "1.000" in first.text and REPORT in first.text
    assert "2 reconstructions" in first.text
    assert find(desk, "#hits").text.count("reconstruction") == 1
    wait(
        desk,
        lambda b: b.execute_script(
            "return [...document.querySelectorAll('#hits img')].every((i) => i.naturalWidth > 0)"
        ),
    )
    find(desk, "#query").send_keys("Emphysema.", Keys.ENTER)
    wait(desk, lambda b: "Emphysema" in find(b, "#cases-title").text)
    find(desk, "details summary").click()
    assert "header" in find(desk, "#provenance").text

    assert not list(page.folder.iterdir())
    assert [line for line in desk.get_log("browser") if line["level"] == "SEVERE"] == []


def test_warnings_about_a_scan_stand_above_its_findings(desk, page, scans, tmp_path):
    image = nib.load(scans[0])
    shape = (*image.shape[:2], 4 * image.shape[2])
    legs = np.random.default_rng(0).integers(20, 60, shape, np.int16)
    legs[:20] -= 1040
    legs[-20:] -= 1040
    path = tmp_path / "legs.nii.gz"
    nib.save(nib.Nifti1Image(legs, image.affine), path)
    open_scan(desk, page, path)
    assert warnings(desk) == list(page.model.prepare(path).notes)
    assert "outside the grid" in warnings(desk)[0]
    assert "no lung inside the grid" in warnings(desk)[-1]
    send(desk, scans[1])
    wait(desk, lambda b: find(b, "#name").text == scans[1].name)
    assert "no lung" not in find(desk, "#warnings").text


def test_a_scan_too_large_for_the_page_loses_slices_and_says_so(desk, page, scans, monkeypatch):
    size = nib.load(scans[0]).shape
    monkeypatch.setattr(scan_view, "MAX_BYTES", int(np.prod(size)))  # half of what int16 take
    open_scan(desk, page, scans[0])
    assert find(desk, "#axial-at").text.endswith(f" / {-(-size[2] // 2)}")
    assert "1 of every 2 slices" in warnings(desk)[-1]


def test_markup_stays_text(desk, page, scans, tmp_path):
    """In the name of a file, in a question, and in a report."""
    markup = "<script>window.broken = 1<_script><img src=x onerror=window.broken=1>"
    scan = tmp_path / f"{markup}.nii.gz"
    scan.write_bytes(scans[0].read_bytes())
    open_scan(desk, page, scan)
    ask(desk, markup)
    wait(desk, lambda b: markup in shown(b))
    find(desk, "#query").send_keys(markup, Keys.ENTER)
    wait(desk, lambda b: markup in find(b, "#cases-title").text)
    assert REPORT in find(desk, "#hits").text
    assert desk.execute_script("return window.broken") is None
    assert not desk.find_elements(By.CSS_SELECTOR, "main script, #cases script, [onerror]")


def test_the_later_of_two_uploads_is_shown(desk, page, scans):
    visit(desk, page)
    wait(desk, lambda b: "Drop a chest CT" in find(b, "#empty").text)
    desk.execute_script(
        "window.names = []; const name = document.getElementById('name');"
        "new MutationObserver(() => names.push(name.textContent)).observe(name, {childList: true})"
    )
    with page.busy_worker():
        for scan in scans[:2]:
            send(desk, scan)
    wait(desk, lambda b: find(b, "#name").text == scans[1].name)
    assert desk.execute_script("return names") == [scans[1].name]
    assert count_hits(desk) == len(scans), "a scan and its similar cases come together"


def test_a_wrong_file_leaves_the_open_scan(desk, page, scans):
    open_scan(desk, page, scans[0])
    address, values = desk.current_url, shown(desk)
    for _ in range(MAX_SCANS):  # each would take the place of a scan in memory
        send(desk, bad_scan(scans))
        wait(desk, lambda b: "not a scan but" in find(b, "#status").text)
        find(desk, "#dismiss").click()
        assert not find(desk, "#job").is_displayed()
    assert (find(desk, "#name").text, shown(desk)) == (scans[0].name, values)
    assert desk.current_url == address and count_hits(desk) == len(scans)
    find(desk, "#findings button").click()
    wait(desk, lambda b: find(b, "#scale").is_displayed())


def test_the_address_names_the_scan(desk, page, scans):
    open_scan(desk, page, scans[0])
    first = desk.current_url
    ask(desk, "coronary stent")
    wait(desk, lambda b: "coronary stent" in shown(b))
    values = shown(desk)
    desk.refresh()
    wait(desk, lambda b: find(b, "#name").text == scans[0].name)
    assert shown(desk) == values
    assert find(desk, "#findings .question").text == "coronary stent"

    send(desk, scans[1])
    wait(desk, lambda b: find(b, "#name").text == scans[1].name)
    assert desk.current_url != first
    desk.back()
    wait(desk, lambda b: find(b, "#name").text == scans[0].name)
    assert desk.current_url == first

    page.analyses.drop(first.partition("#")[2])
    desk.refresh()
    wait(desk, lambda b: "no longer in memory" in find(b, "#status").text)
    assert find(desk, "#empty").is_displayed() and not find(desk, "#exam").is_displayed()
    assert "#" not in desk.current_url


def test_a_refresh_goes_on_waiting_for_a_scan(desk, page, scans):
    open_scan(desk, page, scans[0])
    first = desk.current_url
    with page.busy_worker():
        send(desk, scans[1])
        wait(desk, lambda b: find(b, "#status").text == "Waiting for its turn")
        second = desk.current_url
        assert second != first
        desk.refresh()
        wait(desk, lambda b: find(b, "#status").text == "Waiting for its turn")
    wait(desk, lambda b: find(b, "#name").text == scans[1].name)
    assert desk.current_url == second


@pytest.mark.parametrize("id", ["../about", ".."])
def test_an_address_that_is_no_scan_is_a_line(desk, page, id):
    desk.get(f"{page.address}/#{id}")
    wait(desk, lambda b: find(b, "#status").text.endswith(": Not Found"))
    assert find(desk, "#job").get_attribute("class") == "failed"
    assert "#" not in desk.current_url


def test_an_unknown_state_of_a_scan_is_a_line(desk, page, scans):
    visit(desk, page)
    with page.busy_worker():
        send(desk, scans[0])
        wait(desk, lambda b: find(b, "#status").text == "Waiting for its turn")
        page.analyses.get(desk.current_url.partition("#")[2]).state = "lost"
        wait(desk, lambda b: find(b, "#status").text == "scan: unknown state; got lost")
    assert not find(desk, "#job .spinner").is_displayed() and "#" not in desk.current_url


def test_a_map_that_comes_after_its_scan_was_left_is_dropped(desk, page, scans):
    open_scan(desk, page, scans[0])
    desk.execute_script(
        "const { fetch } = window; window.fetch = async (path) => { const answer = await"
        " fetch(path); await new Promise((go) => { window.release = go; }); return answer; }"
    )
    find(desk, "#findings button").click()
    wait(desk, lambda b: b.execute_script("return Boolean(window.release)"))
    desk.back()
    wait(desk, lambda b: find(b, "#empty").is_displayed())
    desk.execute_async_script("window.release(); setTimeout(arguments[0], 200)")
    assert find(desk, "#scale").get_property("hidden")
    assert not desk.find_elements(By.CSS_SELECTOR, "#findings [aria-pressed=true]")


def test_what_works_says_so_and_the_old_stays_until_the_new_is_there(desk, page, scans):
    open_scan(desk, page, scans[0])
    find(desk, "#findings button").click()
    wait(desk, lambda b: find(b, "#scale").is_displayed())
    title, values, unit = (
        find(desk, "#cases-title").text,
        shown(desk),
        find(desk, "#scale-unit").text,
    )
    with page.busy_worker():
        ask(desk, "stent")
        find(desk, "#query").send_keys("Emphysema.", Keys.ENTER)
        send(desk, scans[1])
        wait(desk, lambda b: find(b, "#status").text == "Waiting for its turn")
        for form in ("#ask", "#search"):
            assert find(desk, form).get_attribute("aria-busy") == "true"
            assert not find(desk, f"{form} button").is_enabled()
        assert find(desk, "#job").get_attribute("aria-busy") == "true"
        assert (find(desk, "#name").text, shown(desk)) == (scans[0].name, values)
        assert (find(desk, "#cases-title").text, find(desk, "#scale-unit").text) == (title, unit)
        assert count_hits(desk) == len(scans)
    wait(desk, lambda b: find(b, "#name").text == scans[1].name)
    for form in ("#ask", "#search"):
        wait(desk, lambda b, form=form: find(b, form).get_attribute("aria-busy") == "false")


def test_the_page_says_that_the_model_is_compiled(desk, page, scans):
    with page.busy_worker():
        warm_up = page.analyses.warm_up()
        visit(desk, page)
        wait(desk, lambda b: "is being compiled" in find(b, "#status").text)
        send(desk, scans[0])
        wait(desk, lambda b: "Waiting for the model" in find(b, "#status").text)
    wait(desk, lambda b: find(b, "#name").text == scans[0].name)
    assert warm_up.done()


def test_a_failed_poll_of_the_model_is_a_line(desk, page, monkeypatch):
    with page.busy_worker():
        page.analyses.warm_up()
        visit(desk, page)
        wait(desk, lambda b: "is being compiled" in find(b, "#status").text)
        monkeypatch.setattr(page.analyses, "max_upload_bytes", object())  # no JSON
        wait(desk, lambda b: "internal error: TypeError" in find(b, "#status").text)
    assert not find(desk, "#job .spinner").is_displayed()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_or_too_faint_or_too_small(browser, page, scans, width, theme):
    look(browser, width=width, theme=theme)
    visit(browser, page)
    assert (cut_elements(browser, ".drop"), faint_texts(browser)) == ([], [])
    send(browser, bad_scan(scans))
    wait(browser, lambda b: "not a scan but" in find(b, "#status").text)
    assert (cut_elements(browser, "#job"), faint_texts(browser)) == ([], [])
    open_scan(browser, page, scans[0])
    ask(browser, "coronary stent")
    wait(browser, lambda b: find(b, "#scale").is_displayed())
    boxes = "#job, .bar, figure, figcaption, aside, form, #findings button, #hits li, .legend"
    assert (cut_elements(browser, boxes), faint_texts(browser)) == ([], [])
    canvases = browser.find_elements(By.CSS_SELECTOR, "canvas")
    grounds = {canvas.value_of_css_property("background-color") for canvas in canvases}
    assert grounds == {"rgba(0, 0, 0, 1)"}, "CT is read on black"
    if width < 600:
        sliders = browser.find_elements(By.CSS_SELECTOR, "figcaption input, #opacity")
        assert len(sliders) == 4 and min(slider.size["height"] for slider in sliders) >= 40
        assert min(slider.size["width"] for slider in sliders) >= 100
        tops = [canvas.rect["y"] for canvas in canvases]
        assert tops == sorted(set(tops)) and len({canvas.rect["x"] for canvas in canvases}) == 1
        assert all(canvas.rect["width"] > 340 for canvas in canvases), "one under another"


@pytest.mark.filterwarnings("error:.*fill value")  # of pandas, about float32 and float64
def test_ranks_among_reference_volumes_stand_in_place_of_scores(desk, page, scans, monkeypatch):
    """And for a question its usual score beside its own; the threshold is a mark."""
    volumes = np.stack([page.model.prepare(scan).volume for scan in scans])
    reference = Reference("3 volumes", latents=page.model.encode_image(volumes))
    curve = Curve((0.0, 1.0), (0.0, 1.0), volumes=3, positive=1, threshold=0.5)
    calibration = Calibration("zero_shot", {LABELS[0]: curve}, fitted_on="3 volumes")
    classifier = dataclasses.replace(
        page.model.zero_shot_classifier(), reference=reference, calibration=calibration
    )
    monkeypatch.setattr(page.model, "reference", reference)
    monkeypatch.setattr(page.analyses, "classifier", classifier)
    open_scan(desk, page, scans[0])
    probabilities = classifier.probabilities(reference.latents)
    ranks = (probabilities < probabilities[:1]).sum(axis=0)
    values = shown(desk)
    assert values[LABELS[0]] == f"{100 * probabilities[0, 0]:.0f} %"  # calibrated
    for name, rank in list(zip(LABELS, ranks, strict=True))[1:]:
        assert values[name] == f"higher than {(0, 33, 66)[rank]} % of 3"
    assert "ompared with 3 reference volumes" in find(desk, "#reading").text
    (tick,) = desk.find_elements(By.CSS_SELECTOR, ".track b")
    assert tick.get_attribute("style") == "left: 50%;"
    ask(desk, "asdfgh banana")
    wait(desk, lambda b: "asdfgh banana" in shown(b))
    assert shown(desk)["asdfgh banana"].startswith("higher than ")
    assert re.fullmatch(r"score 0\.\d\d, usually 0\.\d\d", find(desk, "#findings small").text)


def test_ranks_are_those_of_the_terminal(desk, page, scans, monkeypatch):
    """Also where 100 * rank is less than the count, in floats."""
    ranks = [29 / 100, 57 / 100, 58 / 100, *np.arange(len(LABELS) - 3) / 100]
    latents = np.repeat(page.model.encode_image(page.model.prepare(scans[0]).volume[None]), 100, 0)
    classifier = dataclasses.replace(
        page.model.zero_shot_classifier(), reference=Reference("100 volumes", latents=latents)
    )
    monkeypatch.setattr(Classifier, "rank", lambda self, probabilities: np.array([ranks]))
    monkeypatch.setattr(page.analyses, "classifier", classifier)
    open_scan(desk, page, scans[0])
    expected = {
        name: f"higher than {predictions.above(rank, 100)} of 100"
        for name, rank in zip(LABELS, ranks, strict=True)
    }
    assert shown(desk) == expected
    assert list(expected.values())[:3] == [f"higher than {n} % of 100" for n in (29, 57, 58)]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_model_of_phantoms_alone_is_the_first_warning(browser, page, scans, width, monkeypatch):
    monkeypatch.setattr(page.model, "data_sources", ("phantoms",))
    look(browser, width=width)
    browser.get("about:blank")
    open_scan(browser, page, scans[0])
    assert "phantoms alone: what it says of a patient means nothing" in warnings(browser)[0]
    box = find(browser, "#warnings")
    assert 0 < box.rect["y"] < find(browser, "#axial").rect["y"] and box.is_displayed()
    assert (cut_elements(browser, "#warnings, aside"), faint_texts(browser)) == ([], [])


def test_kept_uploads_are_announced(desk, page, monkeypatch):
    monkeypatch.setattr(page.analyses, "keep_uploads", True)
    visit(desk, page)
    wait(desk, lambda b: "It stays on this machine." in find(b, "#empty").text)
