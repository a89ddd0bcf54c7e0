"""LaTeX tables of a paper from the content of metrics.json, rendered by jinja2 (tables.tex)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ctclip_jax.evaluation.metrics.ranking import RECALL_K
from ctclip_jax.reporting.published import CT_CLIP, find_benchmark

TEMPLATES = Path(__file__).parent / "templates"
ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "→": r"$\rightarrow$",
        **{char: f"\\{char}" for char in "&%$#_{}"},
    }
)


def render_tables(metrics: Mapping[str, Any], model: str) -> str:
    """A table of means over labels, with a row named `model`, and a table with a row per label.

    Published rows come first if there are any for these labels and volumes. The tables need
    booktabs.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # escapes HTML; LaTeX is escaped by finalize, which sees all values
        finalize=to_latex,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("tables.tex").render(
        metrics=metrics,
        model=model,
        benchmark=find_benchmark(metrics["labels"], metrics["source"]),
        ct_clip=CT_CLIP,
        ks=RECALL_K,
    )


def to_latex(value: Any) -> str:
    """Text escaped; a number with three decimals; an estimate with its interval, small.

    Two dashes for a missing value.
    """
    match value:
        case str():
            return value.translate(ESCAPES)
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.3f}"
        case {"value": float(), "low": float(low), "high": float(high)}:
            return f"{value['value']:.3f} {{\\scriptsize[{low:.3f}, {high:.3f}]}}"
        case {"value": float(number)}:
            return f"{number:.3f}"
        case _:
            return "--"
