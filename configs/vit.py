"""A plain 3-D ViT as image tower, in place of CT-ViT: one forward pass costs about the same.

    python main.py --config=configs/vit.py --workdir=WORKDIR \
        --config.data.shards=SHARDS --config.data.tokenizer=BiomedVLP-CXR-BERT/vocab.txt

12 layers of 768 on patches of 20 x 30 x 30 voxels, half of which are left out of every training
step (FLIP), with attention pooling and no quantizer. All else is that of
configs/ct_clip_large_batch.py. Not yet trained on CT-RATE by anyone: expect nothing in particular.
"""

from ml_collections import config_dict

from configs import ct_clip_large_batch


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the experiment; variant 'smoke' is a tiny one of the same form."""
    config = ct_clip_large_batch.get_config(variant)
    size = dict(dim=768, depth=12, heads=12)
    patch = dict(patch_size=(30, 30), temporal_patch_size=20)
    if variant:  # small volumes
        size, patch = dict(dim=96, depth=3, heads=3), dict(patch_size=(8, 8), temporal_patch_size=8)
    if variant == "smoke":
        size = dict(dim=24, depth=2, heads=2)
    shared_keys = ("image_size", "frames", "spacing", "window")
    image = {name: config.model.image[name] for name in shared_keys}
    with config.unlocked():
        config.model.image = dict(tower="vit", patch_dropout=0.5, **image, **size, **patch)
    return config
