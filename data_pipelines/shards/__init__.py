"""Prepared volumes on disk: ArrayRecord shards that tensorflow-datasets opens.

    SHARDS/chest_ct-train.array_record-00000-of-00016   the records
    SHARDS/train-00000-of-00016.jsonl                   the same without volumes, and skips
    SHARDS/preparation-train.json                       how the split was prepared
    SHARDS/skipped.csv, provenance.csv                  cases left out, and why; what was decided
    SHARDS/{dataset_info,features}.json, SHA256SUMS     written last

`python -m data_pipelines.shards verify SHARDS` checks all of it, `show SHARDS NAME` shows a record.
"""

from data_pipelines.shards.dataset import begin, discard, finish, locked, plan
from data_pipelines.shards.format import Record, compress, decompress
from data_pipelines.shards.reader import (
    ShardSource,
    preparation,
    read,
    read_reports,
    read_rows,
    read_skipped,
    splits,
)
from data_pipelines.shards.writer import Shard, Skipped, write_shard

__all__ = [
    "Record",
    "Shard",
    "ShardSource",
    "Skipped",
    "begin",
    "compress",
    "decompress",
    "discard",
    "finish",
    "locked",
    "plan",
    "preparation",
    "read",
    "read_reports",
    "read_rows",
    "read_skipped",
    "splits",
    "write_shard",
]
