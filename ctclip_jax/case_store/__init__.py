"""Cases to search by words or by a scan: latents of volumes, with reports, labels and pictures.

    STORE/store.json              whose latents they are
    STORE/segment-00000/          the cases of one addition, or of a part of it
        latents.npy               (n, d) float32, unit length
        labels.npy                (n, 18) int8: 0, 1, -1 unknown
        cases.jsonl               name, patient, findings, impressions, strata: one case a line
        lines.npy, pictures.npy   (n + 1) where the lines and the pictures begin, in bytes
        pictures.bin              JPEGs, one after the other
    STORE/approximate.faiss       an index of the whole store, if it was asked for

A segment is written aside, brought to the disk, and renamed: it is there whole or not at all, and
what is there is never written again.
"""

from ctclip_jax.case_store.approximate import build_approximate
from ctclip_jax.case_store.searcher import Hit, Searcher
from ctclip_jax.case_store.segment import Entry
from ctclip_jax.case_store.store import Store, Where, adding

__all__ = ["Entry", "Hit", "Searcher", "Store", "Where", "adding", "build_approximate"]
