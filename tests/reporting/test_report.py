"""The report page: complete, self-contained, with untrusted text escaped."""

import ast
import dataclasses
import json
import re
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from ctclip_jax.evaluation import comparison, suite
from ctclip_jax.reporting import examples, latex, published
from ctclip_jax.reporting.report import render_comparison, render_report
from data_pipelines.reports import LABELS
from tests.reporting.conftest import render

ROOT = Path(__file__).parents[2]
JPEG = b"\xff\xd8 a picture"


@pytest.fixture(scope="module")
def html(eval_set, evaluated):
    return render(eval_set, evaluated, num_retrievals=3, thumbnail=JPEG)


def test_page_names_labels_and_protocol(html):
    assert all(f'<th scope="row">{label}</th>' in html for label in LABELS)
    assert "40 volumes of 20 scans, 20 patients; 18 labels" in html
    assert "cross-fitted over 5 folds of patients" in html
    assert "95% CI: percentiles of a bootstrap over patients, 20 resamples, seed 0" in html
    assert "Mean of 17 of 18 labels" in html
    assert "without Medical material, Lymphadenopathy" in html


def test_page_is_self_contained(html):
    sources = re.findall(r'<[^>]*\s(?:src|href|srcset|action)="([^"]*)', html)
    assert sources
    assert all(re.match(r"data:image/jpeg;base64,|#[a-z-]+$", source) for source in sources)
    assert all(target.startswith("#") for target in re.findall(r'xlink:href="([^"]*)', html))
    assert not re.search(r"url\(|@import|<link|<iframe|<object", html)
    assert "default-src 'none'" in html
    html = re.sub(r' xmlns(:xlink)?="[^"]*"', "", html)
    assert "https:" not in html
    assert html.count("http:") == html.count("http://evil.example")  # in text, escaped


def test_links_have_targets(html):
    links = re.findall(r'href="#([a-z-]+)"', html)
    assert len(links) == 7
    assert all(f'<section id="{name}">' in html for name in links)


def test_untrusted_text_is_escaped(html):
    assert "<script>alert" not in html
    assert html.count("<script") == html.count("</script>") == 2
    assert "<img src" not in html
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in html


def test_untrusted_label_is_escaped(small_eval_set, protocol):
    metrics, predictions = suite.evaluate(small_eval_set, protocol=protocol)
    cases = examples.confident_cases(small_eval_set, predictions)
    points = examples.latent_map(small_eval_set.image, 0)
    html = render_report(metrics, small_eval_set, cases=cases, latent_map=points)
    assert "<script>alert" not in html and "<img src" not in html
    assert html.count("<figcaption>&lt;/script&gt;") == 3
    assert '<th scope="row">&lt;/script&gt;' in html


def test_untrusted_text_of_a_comparison_is_escaped(small_eval_set, protocol):
    differences = comparison.compare(small_eval_set, small_eval_set, protocol=protocol)
    evil = small_eval_set.label_names[-1]
    html = render_comparison(differences | {"folders": [evil, "b"]})
    assert html.count("<script") == html.count("</script>") == 1
    assert "<img" not in html
    assert "A: &lt;/script&gt;" in html and "<td>&lt;/script&gt;" in html


def test_map_data_cannot_end_its_script(html, eval_set):
    data = re.search(r'<script type="application/json" id="map-data">(.*?)</script>', html)[1]
    assert not re.search("[<>&\u2028\u2029]", data)
    data = json.loads(data)
    assert data["names"] == eval_set.names.tolist()
    assert len(data["points"]) == len(eval_set.names)
    assert data["labels"][4][:6] == "?" + "".join(map(str, eval_set.labels[1:5, 4])) + "?"


def test_label_table_sorts_by_numbers(html):
    heads = re.findall(r'data-column="(\d+)" aria-sort="(\w+)"><button type="button">([^<]+)', html)
    order = {head: (int(column), sort) for column, sort, head in heads}
    assert order["Label"] == (0, "none")
    assert order["AUROC"] == (3, "descending")
    body = re.search(r'class="sortable.*?<tbody>(.*?)</tbody>', html, re.DOTALL)[1]
    rows = [re.findall(r"<t[dh]([^>]*)>", row) for row in body.split("</tr>")[:-1]]
    assert len(rows) == len(LABELS)
    assert all(len(row) == order["Threshold"][0] + 1 for row in rows)
    for head, (column, _) in order.items():
        keys = [re.search(r'data-value="([^"]*)"', row[column]) for row in rows]
        assert all(keys) != (head == "Label")
        if head == "AUROC":
            values = [float(key[1]) for key in keys if key[1]]
            assert values == sorted(values, reverse=True)
            assert [key[1] for key in keys].count("") == 1


def test_missing_value_is_a_dash_with_its_reason(html):
    assert re.search(r'<span class="missing" title="one class: all 40 [^"]*">–</span>', html)


def with_source(metrics, **source):
    return {**metrics, "source": {"model": "a model"} | source}


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"data_source": "phantoms", "split": "valid"}, "say nothing about patients"),
        ({"data_source": "manifest", "split": "valid"}, ""),
        ({"data_source": "ct_rate", "split": "train"}, ""),
        ({"split": "valid"}, "does not record which data set"),
    ],
    ids=["phantoms", "manifest", "train", "unrecorded"],
)
def test_published_results_are_shown_beside_their_volumes_only(
    evaluated, eval_set, source, sentence
):
    metrics, _ = evaluated
    html = render_report(with_source(metrics, **source), eval_set)
    table = latex.render_tables(with_source(metrics, **source), "ours")
    assert "VocabFine" not in html + table and "CT-Net" not in html + table
    warnings = ("say nothing about patients", "does not record which data set")
    assert [text in html for text in warnings] == [text == sentence for text in warnings]
    assert [text in table for text in warnings] == [text == sentence for text in warnings]


def test_a_comparison_on_phantoms_says_so(small_eval_set, protocol):
    source = {"data_source": "phantoms"}
    phantoms = dataclasses.replace(small_eval_set, source=source)
    differences = comparison.compare(small_eval_set, small_eval_set, protocol=protocol)
    assert "Synthetic" not in render_comparison(differences)
    differences = comparison.compare(phantoms, phantoms, protocol=protocol)
    assert "Synthetic chest CTs" in render_comparison(differences)


def test_hashes_are_folded_away(html):
    head, _, rest = html.partition('<details class="hashes">')
    assert "0123456789" * 6 not in head and "0123456789" * 6 in rest.partition("</details>")[0]


def test_published_results_are_shown_for_their_labels_only(html, evaluated, eval_set):
    assert "VocabFine" in html
    assert "Published results: CT-RATE valid, 18 labels" in html
    assert "fitted on the test labels" in html
    metrics, _ = evaluated
    unlabeled = dataclasses.replace(eval_set, label_names=(), labels=eval_set.labels[:, :0])
    other = {**metrics, "labels": [], "detection": {"reason": "none"}, "strata": {}}
    page = render_report({**other, "source": {}}, unlabeled)
    assert "VocabFine" not in page and "does not record which data set" not in page


def test_benchmark_is_chosen_by_its_labels():
    rad = [*set(LABELS) - {"Mosaic attenuation pattern"} - {x for x in LABELS if "wall" in x}]
    source = {"data_source": "rad_chestct", "split": "test"}
    benchmark = published.find_benchmark([*rad, "Calcification"], source)
    assert benchmark.name == "RAD-ChestCT, 16 labels"
    assert published.find_benchmark(rad, source) is None


def test_cases_and_retrieved_volumes_have_thumbnails(html):
    assert html.count("<details>") == 17  # the hashes have a class
    assert "True positive" in html and "False positive" in html and "False negative" in html
    assert html.count("<img alt=") == html.count("<article>")
    assert html.count("Its own volume has rank") == 3


@pytest.mark.parametrize("missing", ["scores", "latents", "everything else"])
def test_sections_without_input_are_left_out(small_eval_set, protocol, missing):
    changes = {
        "scores": {"scores": None},
        "latents": {"image": None, "text": None},
        "everything else": {"subgroups": {}, "source": {}, "notes": (), "text": None},
    }
    eval_set = dataclasses.replace(small_eval_set, **changes[missing])
    metrics, predictions = suite.evaluate(eval_set, protocol=protocol)
    cases = examples.confident_cases(eval_set, predictions) if predictions else ()
    retrievals = examples.sample_retrievals(eval_set, 2)
    html = render_report(
        metrics, eval_set, predictions=predictions, cases=cases, retrievals=retrievals
    )
    for section, part in (("detection", "scores"), ("retrieval", "latents")):
        reason = metrics[section].get("reason")
        assert (reason is not None) == (missing == part)
        assert reason is None or f"Not available: {reason}." in html
    assert "<img" not in html and '<canvas id="map"' not in html
    page_text = re.sub(r"<style>.*?</style>|<script>.*", "", html, flags=re.DOTALL)
    assert not re.search(r"\bnan\b", page_text)


def test_page_of_the_published_protocol(small_eval_set, protocol):
    metrics, predictions = suite.evaluate(small_eval_set, protocol=protocol, published=True)
    html = render_report(metrics, small_eval_set, predictions=predictions)
    assert "“MAP” as published" in html
    assert "fitted on the same volumes, as published" in html
    assert "chance 0" not in html


def test_page_of_one_volume(eval_set, protocol):
    one = eval_set.take(np.array([1]))
    metrics, predictions = suite.evaluate(one, protocol=protocol)
    cases = examples.confident_cases(one, predictions)
    retrievals = examples.sample_retrievals(one, 3)
    html = render_report(metrics, one, predictions=predictions, cases=cases, retrievals=retrievals)
    assert "1 volume of 1 scan, 1 patient;" in html
    assert "Its own volume has rank <b>1</b> of 1." in html


def test_page_is_deterministic(small_eval_set, protocol):
    metrics, predictions = suite.evaluate(small_eval_set, protocol=protocol)
    pages = {render_report(metrics, small_eval_set, predictions=predictions) for _ in range(2)}
    assert len(pages) == 1


def test_templates_and_static_files_are_package_data():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folder = ROOT / "ctclip_jax/reporting"
    packaged = {
        path for p in patterns["package-data"]["ctclip_jax.reporting"] for path in folder.glob(p)
    }
    files = {
        path for path in folder.rglob("*.*") if path.suffix in (".html", ".tex", ".css", ".js")
    }
    assert packaged == files and len(files) > 10
    package = resources.files("ctclip_jax.reporting")
    assert all(package.joinpath(path.relative_to(folder)).is_file() for path in files)


@pytest.mark.parametrize("file", ["reporting/plots.py", "reporting/report.py", "evaluate.py"])
def test_matplotlib_is_not_imported_before_a_plot(file):
    tree = ast.parse((ROOT / "ctclip_jax" / file).read_text())
    imports = [ast.unparse(node) for node in tree.body if "import" in type(node).__name__.lower()]
    assert imports and not any("matplotlib" in line for line in imports), "its import takes 1 s"
