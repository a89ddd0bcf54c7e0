"""Key table: names and layouts of the published PyTorch weights and of our variables.

A row of a table is (PyTorch key, path in `variables`, layout); "{}" in a key is a layer, and the
array then has all layers stacked on its first axis. Tensors that a strict load needs, but that the
published model (CT-CLIP, arXiv 2403.17834) never uses, have a row (key, shape, neutral value).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from types import EllipsisType
from typing import NamedTuple

import numpy as np

from ctclip_jax.models.ct_clip import CTCLIPConfig

IMAGE = "visual_transformer."
TEXT = "text_transformer."
# Prefixes of the keys of layers; the names are those of `Depths`.
STACKS = {
    "spatial": f"{IMAGE}enc_spatial_transformer.layers.",
    "temporal": f"{IMAGE}enc_temporal_transformer.layers.",
    "text": f"{TEXT}encoder.layer.",
}


class Layout(NamedTuple):
    """Conversions of one tensor from PyTorch's layout to ours and back."""

    from_torch: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(np.transpose, np.transpose)
DEPTHWISE = Layout(lambda x: np.moveaxis(x[:, 0], 0, -1), lambda x: np.moveaxis(x, -1, 0)[:, None])
CODEBOOK = Layout(lambda x: x[0], lambda x: x[None])


class Slot(NamedTuple):
    """Place of one PyTorch tensor: the array of `variables` at `path`, or one layer of it."""

    path: str
    layer: int | EllipsisType
    layout: Layout


def _transformer(torch_name: str, path: str) -> tuple[tuple[str, str, Layout], ...]:
    layer, block = f"{IMAGE}{torch_name}.layers.{{}}", f"params/image/{path}/blocks"
    return (
        (f"{layer}.0.dsconv.weight", f"{block}/peg/kernel", DEPTHWISE),
        (f"{layer}.0.dsconv.bias", f"{block}/peg/bias", SAME),
        (f"{layer}.1.norm.gamma", f"{block}/attn/norm/scale", SAME),
        (f"{layer}.1.to_q.weight", f"{block}/attn/query/kernel", LINEAR),
        (f"{layer}.1.to_kv.weight", f"{block}/attn/key_value/kernel", LINEAR),
        (f"{layer}.1.q_scale", f"{block}/attn/query_scale", SAME),
        (f"{layer}.1.k_scale", f"{block}/attn/key_scale", SAME),
        (f"{layer}.1.to_out.weight", f"{block}/attn/out/kernel", LINEAR),
        (f"{layer}.3.0.weight", f"{block}/ff/norm/scale", SAME),
        (f"{layer}.3.0.bias", f"{block}/ff/norm/bias", SAME),
        (f"{layer}.3.1.weight", f"{block}/ff/up/kernel", LINEAR),
        (f"{layer}.3.4.weight", f"{block}/ff/down/kernel", LINEAR),
        (f"{IMAGE}{torch_name}.norm_out.gamma", f"params/image/{path}/norm/scale", SAME),
    )


def _linear(key: str, path: str) -> tuple[tuple[str, str, Layout], ...]:
    return ((f"{key}.weight", f"{path}/kernel", LINEAR), (f"{key}.bias", f"{path}/bias", SAME))


def _norm(key: str, path: str) -> tuple[tuple[str, str, Layout], ...]:
    return ((f"{key}.weight", f"{path}/scale", SAME), (f"{key}.bias", f"{path}/bias", SAME))


_PATCH, _BIAS = "params/image/patch_embed", "params/image/position_bias"
_EMBED, _BLOCK = "params/text/embed", "params/text/blocks"
_LAYER = f"{TEXT}encoder.layer.{{}}"

IMAGE_TABLE = (
    *_norm(f"{IMAGE}to_patch_emb.1", f"{_PATCH}/norm_in"),
    *_linear(f"{IMAGE}to_patch_emb.2", f"{_PATCH}/proj"),
    *_norm(f"{IMAGE}to_patch_emb.3", f"{_PATCH}/norm_out"),
    *_linear(f"{IMAGE}spatial_rel_pos_bias.net.0.0", f"{_BIAS}/first"),
    *_linear(f"{IMAGE}spatial_rel_pos_bias.net.1.0", f"{_BIAS}/second"),
    *_linear(f"{IMAGE}spatial_rel_pos_bias.net.2", f"{_BIAS}/third"),
    *_transformer("enc_spatial_transformer", "spatial"),
    *_transformer("enc_temporal_transformer", "temporal"),
    (f"{IMAGE}vq._codebook.embed", "codebook/embed", CODEBOOK),
    (f"{IMAGE}vq._codebook.cluster_size", "codebook/cluster_size", CODEBOOK),
)

TEXT_TABLE = (
    (f"{TEXT}embeddings.word_embeddings.weight", f"{_EMBED}/word/embedding", SAME),
    (f"{TEXT}embeddings.position_embeddings.weight", f"{_EMBED}/position/embedding", SAME),
    (f"{TEXT}embeddings.token_type_embeddings.weight", f"{_EMBED}/token_type/embedding", SAME),
    *_norm(f"{TEXT}embeddings.LayerNorm", f"{_EMBED}/norm"),
    *_linear(f"{_LAYER}.attention.self.query", f"{_BLOCK}/attn/query"),
    *_linear(f"{_LAYER}.attention.self.key", f"{_BLOCK}/attn/key"),
    *_linear(f"{_LAYER}.attention.self.value", f"{_BLOCK}/attn/value"),
    *_linear(f"{_LAYER}.attention.output.dense", f"{_BLOCK}/attn/out"),
    *_norm(f"{_LAYER}.attention.output.LayerNorm", f"{_BLOCK}/attn_norm"),
    *_linear(f"{_LAYER}.intermediate.dense", f"{_BLOCK}/up"),
    *_linear(f"{_LAYER}.output.dense", f"{_BLOCK}/down"),
    *_norm(f"{_LAYER}.output.LayerNorm", f"{_BLOCK}/ff_norm"),
    ("to_text_latent.weight", "params/text_projection/kernel", LINEAR),
    ("to_visual_latent.weight", "params/image_projection/kernel", LINEAR),
    ("temperature", "params/temperature", SAME),
)

CLASSIFIER_TABLE = _linear("classifier", "params/classifier")

DROPPED = re.compile(
    r"text_transformer\.embeddings\.position_ids"
    r"|(visual_transformer\.)?(discr|vgg)\..*"
    r"|visual_transformer\.vq\._codebook\.embed_avg"
)
OPTIONAL = re.compile(r".*\.null_kv")  # always empty


def _unused_transformer(torch_name: str) -> tuple[tuple[str, tuple[str, ...], float], ...]:
    attention = f"{IMAGE}{torch_name}.layers.{{}}.1"
    return (
        (f"{attention}.null_kv", ("heads", "none", "dim_head"), 0.0),
        (f"{attention}.norm.beta", ("dim",), 0.0),
        (f"{attention}.context_norm.gamma", ("dim",), 1.0),
        (f"{attention}.context_norm.beta", ("dim",), 0.0),
        (f"{IMAGE}{torch_name}.norm_out.beta", ("dim",), 0.0),
    )


IMAGE_UNUSED = (
    (f"{IMAGE}to_patch_emb_first_frame.1.weight", ("frame_patch",), 1.0),
    (f"{IMAGE}to_patch_emb_first_frame.1.bias", ("frame_patch",), 0.0),
    (f"{IMAGE}to_patch_emb_first_frame.2.weight", ("dim", "frame_patch"), 0.0),
    (f"{IMAGE}to_patch_emb_first_frame.2.bias", ("dim",), 0.0),
    (f"{IMAGE}to_patch_emb_first_frame.3.weight", ("dim",), 1.0),
    (f"{IMAGE}to_patch_emb_first_frame.3.bias", ("dim",), 0.0),
    *_unused_transformer("enc_spatial_transformer"),
    *_unused_transformer("enc_temporal_transformer"),
    (f"{IMAGE}vq._codebook.initted", ("one",), 1.0),
    (f"{IMAGE}to_pixels_first_frame.0.weight", ("frame_patch", "dim"), 0.0),
    (f"{IMAGE}to_pixels_first_frame.0.bias", ("frame_patch",), 0.0),
    (f"{IMAGE}to_pixels.0.weight", ("patch", "dim"), 0.0),
    (f"{IMAGE}to_pixels.0.bias", ("patch",), 0.0),
)

TEXT_UNUSED = (
    (f"{TEXT}pooler.dense.weight", ("hidden", "hidden"), 0.0),
    (f"{TEXT}pooler.dense.bias", ("hidden",), 0.0),
    ("to_text_latent_extra.weight", ("latent", "hidden"), 0.0),
    ("to_visual_latent_extra.weight", ("latent", "image_features"), 0.0),
)


class Depths(NamedTuple):
    """Layers of the three transformers; `text` is 0 without a text tower."""

    spatial: int
    temporal: int
    text: int


def count_layers(keys: Iterable[str]) -> Depths:
    """Returns the depths of a state dict, at least 1 for every tower that it has."""
    keys = list(keys)
    depths = {}
    for name, prefix in STACKS.items():
        matches = (re.match(rf"{re.escape(prefix)}(\d+)\.", key) for key in keys)
        depths[name] = 1 + max((int(match[1]) for match in matches if match), default=0)
    if all(key.startswith(IMAGE) for key in keys):
        depths["text"] = 0
    return Depths(**depths)


def used_keys(depths: Depths, *, classifier: bool) -> dict[str, Slot]:
    """Returns the slot of every PyTorch key whose tensor the model uses."""
    table = IMAGE_TABLE + TEXT_TABLE * bool(depths.text) + CLASSIFIER_TABLE * classifier
    return {key: Slot(path, layer, layout) for key, layer, (path, layout) in _rows(table, depths)}


def unused_keys(depths: Depths) -> dict[str, tuple[tuple[str, ...], float]]:
    """Returns (names of sizes, neutral value) of every tensor that the model never uses."""
    table = IMAGE_UNUSED + TEXT_UNUSED * bool(depths.text)
    return {key: (shape, value) for key, _, (shape, value) in _rows(table, depths)}


def unused_tensors(config: CTCLIPConfig, depths: Depths) -> dict[str, np.ndarray]:
    """Returns neutral values of the tensors that the model never uses: views of one number."""
    image = config.image
    sizes = {
        "one": 1,
        "none": 0,
        "dim": image.dim,
        "heads": image.heads,
        "dim_head": image.dim_head,
        "frame_patch": image.patch_voxels // image.temporal_patch_size,
        "patch": image.patch_voxels,
        "hidden": config.text.hidden_size,
        "latent": config.dim_latent,
        "image_features": image.features,
    }
    return {
        key: np.broadcast_to(np.float32(value), [sizes[name] for name in shape])
        for key, (shape, value) in unused_keys(depths).items()
    }


def _rows(table: tuple, depths: Depths) -> Iterator[tuple[str, int | EllipsisType, list]]:
    """(key, layer, rest of the row) for every layer of every row."""
    for pattern, *row in table:
        stack = next((name for name, prefix in STACKS.items() if pattern.startswith(prefix)), None)
        for layer in range(getattr(depths, stack)) if stack else (...,):
            yield pattern.format(layer), layer, row
