"""Case store: latents, reports and labels of volumes on disk, with nearest-neighbor search.

STORE/store.json              fingerprint of the model, size of its latents
STORE/segment-00000/          the cases of one append; a published segment is immutable
    latents.npy               (n, d) float32, unit length
    labels.npy                (n, 18) int8: 0, 1, -1 unknown
    exams.npy                 (n,) uint64: digests of the exams; equal for reconstructions
    cases.jsonl               name, patient, findings, impressions, strata, exam: one case a line
    lines.npy, pictures.npy   (n + 1) byte offsets into cases.jsonl and pictures.bin
    pictures.bin              concatenated JPEG thumbnails
STORE/approximate.faiss       optional FAISS index of all cases
"""

from ctclip_jax.case_store.searcher import Hit, Searcher, build_approximate_index, encode_query
from ctclip_jax.case_store.store import CaseFilter, Entry, Store, StoreWriter, open_for_append

__all__ = [
    "CaseFilter",
    "Entry",
    "Hit",
    "Searcher",
    "Store",
    "StoreWriter",
    "build_approximate_index",
    "encode_query",
    "open_for_append",
]
