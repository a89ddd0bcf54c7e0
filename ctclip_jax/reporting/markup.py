"""Pieces of HTML: figures with their intervals, pictures, data for a script, the page around them.

What these functions return is HTML; text that they take is escaped, unless it is said to be HTML.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from html import escape
from math import ceil, floor
from typing import Any

from ctclip_jax.reporting.script import SCRIPT
from ctclip_jax.reporting.style import CSS

Figure = Mapping[str, Any]

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_UNSAFE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def document(title: str, body: str) -> str:
    """A page that needs no other file and may not ask for one; `body` is HTML."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
{body}
<footer>For research only; not a medical device.</footer>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def section(name: str, title: str, *, about: str, body: str) -> str:
    """A part of the page that #name leads to; `about`, a sentence or two, and `body` are HTML."""
    return (
        f'<section id="{name}"><h2>{escape(title)}</h2>\n'
        f'<p class="soft">{about}</p>\n{body}</section>\n'
    )


def number(figure: Figure | None, form: str = ".3f") -> str:
    """The value; a dash that tells the reason to who points at it where there is none."""
    if figure and figure.get("value") is not None:
        return format(figure["value"], form)
    reason = (figure or {}).get("reason", "not given")
    return f'<span class="none" title="{escape(reason)}">–</span>'


def interval(figure: Figure | None, form: str = ".3f") -> str:
    """'low–high'; empty without an interval."""
    if not figure or figure.get("low") is None or figure.get("high") is None:
        return ""
    return f"{figure['low']:{form}}–{figure['high']:{form}}"


def stacked(figure: Figure | None, form: str = ".3f") -> str:
    """The value, and below it, small, its interval and the level of chance."""
    below = [f'<small class="ci">{interval(figure, form)}</small>'] if interval(figure) else []
    if figure and figure.get("chance") is not None:
        below.append(f'<small class="chance">chance {figure["chance"]:{form}}</small>')
    return f"<b>{number(figure, form)}</b>{''.join(below)}"


Scale = tuple[float, float]


def scale_of(figures: Iterable[Figure]) -> Scale:
    """From the tenth below all intervals to the tenth above them."""
    known = [figure for figure in figures if figure.get("value") is not None]
    ends = [
        figure["value"] if figure.get(end) is None else figure[end]
        for figure in known
        for end in ("low", "high")
    ]
    low, high = floor(10 * min(ends, default=0)) / 10, ceil(10 * max(ends, default=1)) / 10
    return (low, high) if high > low else (low, low + 0.1)


def scale_head(scale: Scale) -> str:
    """The head of a column of `ranged`, with the ends of its scale."""
    low, high = scale
    return f'<th class="scale"><span><i>{low:.1f}</i><i>{high:.1f}</i></span></th>'


def ranged(figure: Figure | None, scale: Scale) -> str:
    """Three cells: a value, its interval, and a picture of both."""
    value = (figure or {}).get("value")
    if value is None:
        return f"{cell(number(figure))}<td></td><td></td>"

    def place(end: str) -> float:
        at = value if figure.get(end) is None else figure[end]
        return 100 * min(1.0, max(0.0, (at - scale[0]) / (scale[1] - scale[0])))

    told = interval(figure)
    left, right = place("low"), place("high")
    band = f'<i style="left:{left:.1f}%;width:{right - left:.1f}%"></i>' if told else ""
    return (
        f'{cell(number(figure), value, title=_delong(figure))}<td class="ci">{told}</td>'
        f'<td class="drawn"><span class="range">{band}'
        f'<b style="left:{place("value"):.1f}%"></b></span></td>'
    )


def _delong(figure: Figure) -> str:
    ends = figure.get("delong_low"), figure.get("delong_high")
    return "" if None in ends else f"DeLong interval: {ends[0]:.3f}–{ends[1]:.3f}"


def cell(content: str, value: float | None = None, *, title: str = "") -> str:
    """A cell of a table; `content` is HTML, `value` what a sorted table goes by."""
    key = "" if value is None else f"{value:.6g}"
    told = f' title="{escape(title)}"' if title else ""
    return f'<td data-value="{key}"{told}>{content}</td>'


def chip(text: str, kind: str = "") -> str:
    return f'<span class="chip {kind}">{escape(text)}</span>'


def picture(content: bytes | None, *, alt: str, kind: str = "image/jpeg") -> str:
    """An image that is decoded when it is first seen; nothing where there is none."""
    if content is None:
        return ""
    encoded = base64.b64encode(content).decode()
    return f'<img loading="lazy" alt="{escape(alt)}" src="data:{kind};base64,{encoded}">'


def data_script(name: str, content: Any) -> str:
    """JSON for a script to read by its id; no text in it can end the element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return f'<script type="application/json" id="{name}">{text.translate(_UNSAFE)}</script>'
