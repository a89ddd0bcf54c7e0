"""LaTeX tables."""

import dataclasses

import pytest

from ctclip_jax.evaluation import suite
from ctclip_jax.reporting import latex


def test_tables_have_published_rows_and_escaped_names(evaluated):
    metrics, _ = evaluated
    text = latex.render_tables(metrics, "ours_1 & 50% $\\x")
    rows = text.splitlines()
    assert rows[5].startswith("CT-CLIP zero-shot & 0.731 & 0.707 & 0.668 & 0.323 & 0.029")
    row = next(row for row in rows if row.startswith("ours"))
    assert row.startswith(r"ours\_1 \& 50\% \$\textbackslash{}x & 0.")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert all(row.count(" & ") in (8, 9) for row in rows if row.endswith(r"\\"))
    assert r"Pericardial effusion & 0 & -- & --" in text


@pytest.mark.parametrize(
    ("missing", "columns"), [({"scores": None}, (1, 5)), ({"image": None, "text": None}, (5, 9))]
)
def test_missing_estimates_are_dashes(small_eval_set, protocol, missing, columns):
    eval_set = dataclasses.replace(small_eval_set, **missing)
    metrics, _ = suite.evaluate(eval_set, protocol=protocol)
    row = next(
        row for row in latex.render_tables(metrics, "ours").splitlines() if row[:4] == "ours"
    )
    cells = [cell.strip(" \\") for cell in row.split("&")]
    assert set(cells[slice(*columns)]) == {"--"}
    assert cells.count("--") < 8
