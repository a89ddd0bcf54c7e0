"""CT-CLIP on coarse volumes with a small head: a quarter of the published FLOPs of a volume.

    python -m data_pipelines.prepare --source=ct_rate --data=CT-RATE --out=SHARDS \
        --shape=96,192,192 --spacing=3,1.5,1.5
    python main.py --config=configs/low_cost.py --workdir=WORKDIR \
        --config.data.shards=SHARDS --config.data.tokenizer=BiomedVLP-CXR-BERT/vocab.txt

192 x 192 x 96 voxels of 1.5 x 1.5 x 3 mm in patches of 12 x 12 x 6: 4,096 tokens. The mean of all
tokens goes to the projection, not the published row of them (151 of 284 M weights). All else is
that of configs/ct_clip_large_batch.py; micro-batches of 32 fit a GPU of 24 GB.
"""

from ml_collections import config_dict

from configs import ct_clip_large_batch


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the experiment; variant 'smoke' is a tiny one of the same form."""
    config = ct_clip_large_batch.get_config(variant)
    config.model.image.pool = "mean"
    if not variant:
        config.model.image.update(image_size=(192, 192), patch_size=(12, 12))
        config.model.image.update(frames=96, temporal_patch_size=6, spacing=(3.0, 1.5, 1.5))
    return config
