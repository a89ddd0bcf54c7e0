"""The report page: complete, self-contained, with untrusted text escaped; the tables of a paper."""

import dataclasses
import json
import re

import numpy as np
import pytest

from configs import evaluation
from ctclip_jax.common.configs import from_dict
from ctclip_jax.evaluation import suite
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.reporting import examples, latex, plots, published
from ctclip_jax.reporting.latent_map import latent_map
from ctclip_jax.reporting.markup import data_script, document
from ctclip_jax.reporting.report import page
from data_pipelines.reports import LABELS

EVIL = '</script><script>alert(1)</script><img src="http://evil.example/x">&\u2028'
PICTURE = b"\xff\xd8 a picture"


def protocol(**changes):
    config = from_dict(ProtocolConfig, evaluation.get_config().to_dict())
    return dataclasses.replace(config, resamples=20, **changes)


def make_study(volumes=40, labels=LABELS) -> EvalSet:
    """Two volumes a scan; one label is absent, one unknown in part, names and reports are evil."""
    rng = np.random.default_rng(0)
    scan = np.arange(volumes) // 2
    truth = rng.integers(0, 2, (volumes, len(labels))).astype(np.int8)
    truth[:, 3] = 0
    truth[::5, 4] = -1
    latents = rng.normal(size=(2, volumes, 6))
    latents /= np.linalg.norm(latents, axis=-1, keepdims=True)
    image, text = latents[0], latents[1][scan]
    return EvalSet(
        names=np.array([f"v{i:03d}{EVIL}" for i in range(volumes)]),
        patients=np.array([f"p{s}" for s in scan]),
        scans=np.array([f"p{s}/s" for s in scan]),
        reports=np.array([f"Report {s}. {EVIL}" for s in scan]),
        label_names=tuple(labels),
        labels=truth,
        scores=np.clip((truth > 0) * 0.3 + rng.random(truth.shape) * 0.7, 0, 1),
        image=image,
        text=text,
        strata={"sex": rng.choice(["F", "M"], volumes), "age": np.full(volumes, "056Y")},
        source={"model": f"runs/{EVIL}", "shards": ["a", "b"]},
        notes=(f"a note {EVIL}",),
    )


@pytest.fixture(scope="module")
def study():
    return make_study()


@pytest.fixture(scope="module")
def made(study):
    return suite.evaluate(study, protocol=protocol())


@pytest.fixture(scope="module")
def html(study, made):
    metrics, predictions = made
    cases, retrievals = examples.confident(study, predictions), examples.spread(study, 3)
    return page(
        metrics,
        study,
        predictions=predictions,
        latent_map=latent_map(study.image, 0),
        cases=cases,
        retrievals=retrievals,
        pictures={row: PICTURE for row in examples.rows(cases, retrievals)},
    )


def test_page_names_every_label_and_what_was_evaluated(html):
    assert all(f'<th scope="row">{label}</th>' in html for label in LABELS)
    assert "40 volumes of 20 scans, 20 patients; 18 labels" in html
    assert "cross-fitted over 5 folds of patients" in html
    assert "95 % percentiles of a bootstrap over patients, 20 resamples, seed 0" in html
    assert "Mean of 17 of 18 labels" in html
    assert "without Medical material, Lymphadenopathy" in html


def test_page_needs_no_other_file(html):
    sources = re.findall(r'<[^>]*\s(?:src|href|srcset|action)="([^"]*)', html)
    assert sources
    assert all(re.match(r"data:image/jpeg;base64,|#[a-z-]+$", source) for source in sources)
    assert not re.search(r"url\(|@import|<link|<iframe|<object", html)
    assert "https:" not in html
    assert html.count("http:") == html.count("http://evil.example")  # in text, escaped


def test_links_lead_somewhere(html):
    assert all(f'id="{name}"' in html for name in re.findall(r'href="#([a-z-]+)"', html))


def test_untrusted_text_ends_no_element(html):
    assert "<script>alert" not in html
    assert html.count("<script") == html.count("</script>") == 2
    assert "<img src" not in html
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in html


def test_json_in_a_script_is_safe_and_the_same_when_read():
    script = data_script("x", {"name": EVIL})
    inner = script.removeprefix('<script type="application/json" id="x">')
    inner = inner.removesuffix("</script>")
    assert not re.search("[<>&\u2028\u2029]", inner)
    assert json.loads(inner) == {"name": EVIL}


def test_table_of_labels_sorts_by_numbers(html):
    heads = re.findall(r'data-column="(\d+)" aria-sort="(\w+)"><button type="button">([^<]+)', html)
    order = {head: (int(column), sort) for column, sort, head in heads}
    assert order["Label"] == (0, "none")
    assert order["AUROC"] == (3, "descending")
    body = re.search(r'class="sortable.*?<tbody>(.*?)</tbody>', html, re.DOTALL)[1]
    rows = [re.findall(r"<t[dh]([^>]*)>", row) for row in body.strip().split("\n")]
    assert len(rows) == len(LABELS)
    assert all(len(row) == order["Threshold"][0] + 1 for row in rows)
    for head, (column, _) in order.items():
        keys = [re.search(r'data-value="([^"]*)"', row[column]) for row in rows]
        assert all(keys) != (head == "Label")
        if head == "AUROC":
            values = [float(key[1]) for key in keys if key[1]]
            assert values == sorted(values, reverse=True)
            assert [key[1] for key in keys].count("") == 1


def test_missing_figure_is_a_dash_with_its_reason(html):
    assert '<span class="none" title="one class: all 40 volumes are negative">–</span>' in html


def test_published_figures_stand_beside_those_of_their_labels_only(html, made, study):
    assert "VocabFine" in html
    assert "Published for CT-RATE valid, 18 labels" in html
    assert "fitted on the test labels" in html
    metrics, _ = made
    other = {**metrics, "labels": ["Something else"]}
    assert "VocabFine" not in page(other, study)
    rad = [*set(LABELS) - {"Mosaic attenuation pattern"} - {x for x in LABELS if "wall" in x}]
    assert published.benchmark([*rad, "Calcification"]).name == "RAD-ChestCT, 16 labels"
    assert published.benchmark(rad) is None


def test_cases_and_retrieved_volumes_are_shown_with_their_pictures(html):
    assert html.count("<details>") == 17
    assert "True positive" in html and "False positive" in html and "False negative" in html
    assert len(re.findall(r'<img loading="lazy"', html)) == html.count("<article>")
    assert html.count("Its own volume has rank") == 3


@pytest.mark.parametrize("lacking", ["scores", "latents", "everything else"])
def test_page_without_a_part(study, lacking):
    gone = {
        "scores": {"scores": None},
        "latents": {"image": None, "text": None},
        "everything else": {"strata": {}, "source": {}, "notes": (), "text": None},
    }
    study = dataclasses.replace(study, **gone[lacking])
    metrics, predictions = suite.evaluate(study, protocol=protocol())
    cases = examples.confident(study, predictions) if predictions else ()
    retrievals = examples.spread(study, 2)
    html = page(metrics, study, predictions=predictions, cases=cases, retrievals=retrievals)
    assert ("There are no figures: no scores are given." in html) == (lacking == "scores")
    assert ("There are no figures: no latents are given." in html) == (lacking == "latents")
    assert "<img" not in html and '<canvas id="map"' not in html
    assert "nan" not in re.sub("[a-z]nan|nan[a-z]", "", re.sub("<script>.*", "", html))
    latex.table(metrics, "model")


def test_page_of_the_published_protocol(study):
    metrics, predictions = suite.evaluate(study, protocol=protocol(), published=True)
    html = page(metrics, study, predictions=predictions)
    assert "“MAP” as published" in html
    assert "fitted on the same volumes, as published" in html
    assert "chance 0" not in html


def test_page_of_one_volume(study):
    one = study.take(np.array([1]))
    metrics, predictions = suite.evaluate(one, protocol=protocol())
    assert latent_map(one.image, 0) is None
    cases, retrievals = examples.confident(one, predictions), examples.spread(one, 3)
    html = page(metrics, one, predictions=predictions, cases=cases, retrievals=retrievals)
    assert "1 volume of 1 scan, 1 patient;" in html
    assert "Its own volume has rank <b>1</b> of 1." in html


def test_page_is_the_same_from_run_to_run(study, made):
    metrics, predictions = made
    pages = {page(metrics, study, predictions=predictions) for _ in range(2)}
    assert len(pages) == 1


def test_document_asks_for_nothing():
    assert "default-src 'none'" in document("A title", "")


def test_curves_are_thinned_but_keep_their_ends():
    rng = np.random.default_rng(0)
    labels, scores = np.arange(9000) % 2, rng.random(9000)
    drawn = plots.roc(labels, scores, predicted=scores > 0.5, note="0.5")
    curve = re.search(r'class="curve" points="([^"]*)"', drawn)[1].split()
    assert len(curve) <= plots.POINTS
    assert (curve[0], curve[-1]) == ("0.0,100.0", "100.0,0.0")
    dot = re.search(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert float(dot[1]) == pytest.approx(50, abs=2) and float(dot[2]) == pytest.approx(50, abs=2)


def test_confident_cases_are_the_extreme_ones_on_their_side_of_the_threshold():
    study = make_study(6, LABELS[:5])
    labels, scores = np.zeros((6, 5), np.int8), np.full((6, 5), 0.1)
    labels[:, 0] = (1, 1, 0, 0, 1, 1)
    scores[:, 0] = (0.9, 0.8, 0.7, 0.2, 0.3, 0.4)
    labels[:, 1] = (0, 0, 0, -1, -1, 1)
    scores[:, 1] = (0.1, 0.2, 0.3, 0.9, 0.0, 0.8)
    study = dataclasses.replace(study, labels=labels, scores=scores)
    thresholds = np.full((6, 5), 0.5)
    thresholds[:, 2:] = np.nan
    _, predictions = suite.evaluate(study, protocol=protocol())
    predictions = dataclasses.replace(predictions, thresholds=thresholds)
    first, second = LABELS[:2]
    assert examples.confident(study, predictions) == (
        examples.Case(first, examples.TRUE_POSITIVE, 0),
        examples.Case(first, examples.FALSE_POSITIVE, 2),
        examples.Case(first, examples.FALSE_NEGATIVE, 4),
        examples.Case(second, examples.TRUE_POSITIVE, 5),
    )


def test_spread_takes_reports_of_different_scans_and_ranks_as_the_metrics_do(study):
    found = examples.spread(study, 4)
    assert len({study.scans[each.row] for each in found}) == 4
    assert (found[0].row, found[-1].row) == (0, 38)
    for each in found:
        similarity = study.image @ study.text[each.row]
        assert each.rank == 1 + (similarity > similarity[each.row]).sum()
        assert each.nearest == tuple(np.argsort(-similarity)[:3])
    silent = dataclasses.replace(study, reports=np.array([""] * 38 + ["Yes.", "Yes."]))
    assert [each.row for each in examples.spread(silent, 4)] == [38]


def test_latent_map_is_deterministic_and_keeps_groups_together():
    rng = np.random.default_rng(0)
    centers = np.repeat(np.eye(8)[:2], 30, axis=0)
    latents = centers + 0.05 * rng.normal(size=(60, 8))
    first = latent_map(latents, 0)
    np.testing.assert_array_equal(first, latent_map(latents, 0))
    assert first.min() >= 0 and first.max() <= 1
    means = first[:30].mean(0), first[30:].mean(0)
    assert np.linalg.norm(means[0] - means[1]) > 2 * first[:30].std()
    assert latent_map(latents[:3], 0) is None
    assert latent_map(np.ones((9, 4)), 0) is None
    assert latent_map(latents[:4], 0).shape == (4, 2)


def test_latex_has_the_published_rows_and_escapes(made):
    metrics, _ = made
    text = latex.table(metrics, "ours_1 & 50% $\\x")
    rows = text.splitlines()
    assert rows[5].startswith("CT-CLIP zero-shot & 0.731 & 0.707 & 0.668 & 0.323 & 0.029")
    own = next(row for row in rows if row.startswith("ours"))
    assert own.startswith(r"ours\_1 \& 50\% \$\textbackslash{}x & 0.")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert all(row.count(" & ") in (8, 9) for row in rows if row.endswith(r"\\"))
    assert r"Pericardial effusion & 0 & -- & --" in text
