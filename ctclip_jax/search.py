"""Searches a case store (`ctclip_jax.index`) by text or by a similar scan.

    python -m ctclip_jax.search --store=STORE --model=EXPORT --text="Large pleural effusion."
    python -m ctclip_jax.search --store=STORE --model=EXPORT --volume=scan.nii.gz --k=5 \\
        --label="Pleural effusion" --label="no:Cardiomegaly" --stratum=sex=F

Text finds volumes, not reports: it is encoded as a report is, and compared with the latents of the
volumes. Of the reconstructions of an exam the most similar one is shown; with --per=volume all are.
Filters are exact: --label passes cases whose label is annotated as present, with no: as absent.
"""

from absl import flags

from data_pipelines import command_line


def define_flags() -> None:
    flags.DEFINE_string("store", None, "Folder that ctclip_jax.index wrote.", required=True)
    flags.DEFINE_string("model", None, "Any path that ctclip_jax.load opens.", required=True)
    flags.DEFINE_string("tokenizer", None, "Its vocab.txt or *.model, if not in the export.")
    flags.DEFINE_string("text", None, "Text query.")
    flags.DEFINE_string("volume", None, "Scan to find similar cases of.")
    flags.DEFINE_integer("k", 10, "Number of cases to return.", lower_bound=1)
    flags.DEFINE_enum("per", "exam", ("exam", "volume"), "One case per exam, or all its volumes.")
    flags.DEFINE_multi_string("label", [], "Only cases with this label; no:LABEL: without it.")
    flags.DEFINE_multi_string("stratum", [], "Only cases of this stratum: NAME=VALUE.")
    flags.DEFINE_string("json", None, "File to write the hits to.")


command_line.parse(__name__, define_flags)

import dataclasses
import json
import textwrap
from collections.abc import Sequence

from ctclip_jax import load
from ctclip_jax.case_store import CaseFilter, Hit, Searcher, Store, encode_query
from ctclip_jax.evaluation.encode import fingerprint
from data_pipelines.errors import InputError
from data_pipelines.files import write_text

REPORT_WIDTH = 100  # characters


def parse_filter(labels: Sequence[str], strata: Sequence[str]) -> CaseFilter:
    """The filter of --label and --stratum."""
    label_pairs = [
        (label.removeprefix("no:"), int(not label.startswith("no:"))) for label in labels
    ]
    stratum_pairs = [tuple(stratum.split("=", 1)) for stratum in strata]
    for stratum, pair in zip(strata, stratum_pairs, strict=True):
        if len(pair) != 2 or not all(pair):
            raise InputError(f"--stratum: got {stratum}, expected NAME=VALUE")
    for flag, pairs in (("--label", label_pairs), ("--stratum", stratum_pairs)):
        # Conditions are combined by "and", so two values of one name would find nothing.
        if len(set(pairs)) > len(dict(pairs)):
            raise InputError(f"{flag}: two values of one name, which no case has; got {pairs}")
    return CaseFilter(dict(label_pairs), dict(stratum_pairs))


def format_table(hits: Sequence[Hit]) -> str:
    """Rank, similarity, name, present labels and the beginning of the report of each hit."""
    lines = []
    for rank, hit in enumerate(hits, start=1):
        entry = hit.entry
        present = ", ".join(name for name, value in entry.labels.items() if value) or "-"
        others = f"  ({hit.num_volumes} reconstructions)" if hit.num_volumes > 1 else ""
        lines.append(f"{rank:3}  {hit.similarity:+.3f}  {entry.name}{others}  [{present}]")
        if report := entry.impressions or entry.findings:
            lines.append("     " + textwrap.shorten(report, REPORT_WIDTH, placeholder=" ..."))
    return "\n".join(lines)


def main() -> None:
    values = flags.FLAGS
    if bool(values.text) == bool(values.volume):
        raise InputError("--text, --volume: pass one of them")
    # Wrong filters fail here, before the model is loaded.
    case_filter, store = parse_filter(values.label, values.stratum), Store(values.store)
    # An approximate search takes no mask, not even one that every case passes.
    mask = store.mask(case_filter) if values.label or values.stratum else None
    model = load(values.model, tokenizer=values.tokenizer)
    store.check_model(fingerprint(model))
    if values.text:
        query = encode_query(model, values.text)
    else:
        query = model.encode_image(model.prepare(values.volume).volume[None])[0]
    hits = Searcher(store).search(query, k=values.k, mask=mask, per=values.per)
    print(format_table(hits) if hits else "no case passes the filter")
    if values.json:
        rows = [
            {
                "similarity": round(hit.similarity, 6),
                "num_volumes": hit.num_volumes,
                **dataclasses.asdict(hit.entry),
            }
            for hit in hits
        ]
        write_text(values.json, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    command_line.run(main)
