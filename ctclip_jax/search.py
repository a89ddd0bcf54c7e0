"""Cases of a store (`ctclip_jax.index`) by words, or like a scan.

    python -m ctclip_jax.search --store=STORE --model=EXPORT --text="Large pleural effusion."
    python -m ctclip_jax.search --store=STORE --model=EXPORT --volume=scan.nii.gz --k=5 \\
        --label="Pleural effusion" --label="no:Cardiomegaly" --stratum=sex=F

Words find volumes, not reports: the text goes through the text tower, as a report does, and its
latent is held against those of the volumes. Filters are exact: --label asks for cases in which
somebody has read the label, or with no: its absence.
"""

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float32

from ctclip_jax import Model, load
from ctclip_jax.case_store import Hit, Searcher, Store, Where
from ctclip_jax.evaluation.encode import encode_reports
from ctclip_jax.evaluation.latents import fingerprint
from data_pipelines.errors import InputError, run_main
from data_pipelines.files import write_text
from data_pipelines.reports import split_sentences

WIDTH = 100


def text_latent(model: Model, text: str) -> Float32[np.ndarray, "1 d"]:
    """The latent of a query, read as the model reads reports."""
    texts = split_sentences(text) if model.pool_sentences else []
    return encode_reports([texts or [text]], encode_texts=model.encode_text)


def parse_where(labels: Sequence[str], strata: Sequence[str]) -> Where:
    """The filter of the flags. Raises InputError for one that is none, or that nothing can pass."""
    wanted = [(label.removeprefix("no:"), int(not label.startswith("no:"))) for label in labels]
    pairs = []
    for stratum in strata:
        name, _, value = stratum.partition("=")
        if not (name and value):
            raise InputError(f"--stratum: NAME=VALUE, not {stratum}")
        pairs.append((name, value))
    return Where(_one_each(wanted, flag="label"), _one_each(pairs, flag="stratum"))


def _one_each(pairs: Sequence[tuple[str, Any]], *, flag: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if found.setdefault(name, value) != value:
            raise InputError(f"--{flag}: no case is two things at once of {name!r}")
    return found


def table(hits: Sequence[Hit]) -> str:
    """Hits, to print."""
    lines = []
    for rank, hit in enumerate(hits, start=1):
        entry = hit.entry
        present = ", ".join(name for name, value in entry.labels.items() if value) or "-"
        lines.append(f"{rank:3}  {hit.similarity:+.3f}  {entry.name}  [{present}]")
        report = entry.impressions or entry.findings
        if report:
            lines.append("     " + textwrap.shorten(report, WIDTH, placeholder=" ..."))
    return "\n".join(lines)


def as_json(hits: Sequence[Hit]) -> str:
    """Hits, for a program."""
    found = [
        {
            "name": hit.entry.name,
            "similarity": round(hit.similarity, 6),
            "findings": hit.entry.findings,
            "impressions": hit.entry.impressions,
            "labels": dict(hit.entry.labels),
            "strata": dict(hit.entry.strata),
        }
        for hit in hits
    ]
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def define_flags() -> None:
    """Only the binary has flags, so that importing this module adds none."""
    flags.DEFINE_string("store", None, "Folder that ctclip_jax.index wrote.", required=True)
    flags.DEFINE_string("model", None, "Any path that ctclip_jax.load opens.", required=True)
    flags.DEFINE_string("tokenizer", None, "Its vocab.txt or *.model, if not in the export.")
    flags.DEFINE_string("text", None, "What to find.")
    flags.DEFINE_string("volume", None, "A scan, to find others like it.")
    flags.DEFINE_integer("k", 10, "Cases to find.", lower_bound=1)
    flags.DEFINE_multi_string("label", [], "Cases with a label; no:LABEL, without it.")
    flags.DEFINE_multi_string("stratum", [], "Cases of a stratum: NAME=VALUE.")
    flags.DEFINE_string("json", None, "File to write the cases to as well.")


def main() -> None:
    """Searches for what the flags say."""
    values = flags.FLAGS
    if bool(values.text) == bool(values.volume):
        raise InputError("give --text or --volume")
    where, store = parse_where(values.label, values.stratum), Store.open(values.store)
    mask = store.mask(where) if where != Where() else None
    model = load(values.model, tokenizer=values.tokenizer)
    store.check_model(fingerprint(model))
    if values.text:
        query = text_latent(model, values.text)
    else:
        query = model.encode_image(model.prepare(values.volume).volume[None])
    (hits,) = Searcher(store).search(query, k=values.k, where=mask)
    print(table(hits) if hits else "no case passes the filter")
    if values.json:
        write_text(Path(values.json), as_json(hits))
    sys.stdout.flush()


if __name__ == "__main__":
    run_main(main, define_flags)
