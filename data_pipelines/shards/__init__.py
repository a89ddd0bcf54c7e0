"""Prepared volumes on disk: ArrayRecord shards that tensorflow-datasets opens.

    SHARDS/chest_ct-train.array_record-00000-of-00016   the records
    SHARDS/train-00000-of-00016.jsonl                   the same without volumes; skipped cases
    SHARDS/preparation-train.json                       settings of the split's preparation
    SHARDS/skipped.csv, provenance.csv                  skipped cases with reasons; decisions
    SHARDS/{dataset_info,features}.json, SHA256SUMS     written last

`python -m data_pipelines.shards verify SHARDS` checks all of it, `show SHARDS NAME` shows a record.
"""

from data_pipelines import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "data_pipelines.shards.dataset": (
            "begin discard finish plan preparation read read_reports read_rows splits"
        ),
        "data_pipelines.shards.format": (
            "Record Shard Skipped decode_slabs decode_volume encode_volume write_shard"
        ),
    },
)
