"""Model config from the tensor shapes of a PyTorch state dict."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ctclip_jax.checkpoints.torch_names import IMAGE, TEXT, Depths
from ctclip_jax.models.bert import BertConfig
from ctclip_jax.models.ct_clip import CTCLIPConfig
from ctclip_jax.models.ct_vit import CTViTConfig
from data_pipelines.errors import InputError

PUBLISHED = CTViTConfig()
BERT_HEAD_SIZE = 64
V1_PATCH_VOXELS = 15 * 30 * 30

# Size -> (key, axes, axis): a tensor of that many axes, and the one of them that has the size.
IMAGE_SIZES = {
    "patch_voxels": (f"{IMAGE}to_patch_emb.1.weight", 1, 0),
    "frame_voxels": (f"{IMAGE}to_patch_emb_first_frame.1.weight", 1, 0),
    "dim": (f"{IMAGE}to_patch_emb.2.weight", 2, 0),
    "heads": (f"{IMAGE}spatial_rel_pos_bias.net.2.weight", 2, 0),
    "dim_head": (f"{IMAGE}enc_spatial_transformer.layers.0.1.q_scale", 1, 0),
    "codebook_size": (f"{IMAGE}vq._codebook.embed", 3, 1),
}
TEXT_SIZES = {
    "vocab_size": (f"{TEXT}embeddings.word_embeddings.weight", 2, 0),
    "hidden_size": (f"{TEXT}embeddings.LayerNorm.weight", 1, 0),
    "max_positions": (f"{TEXT}embeddings.position_embeddings.weight", 2, 0),
    "token_types": (f"{TEXT}embeddings.token_type_embeddings.weight", 2, 0),
    "intermediate_size": (f"{TEXT}encoder.layer.0.intermediate.dense.weight", 2, 0),
    "dim_latent": ("to_text_latent.weight", 2, 0),
    "image_features": ("to_visual_latent.weight", 2, 1),
}
CLASSIFIER_SIZES = {"num_labels": ("classifier.bias", 1, 0)}


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes that tensor shapes do not determine; None: inferred, or as published if that fits.

    `image_size` and `patch_size` are voxels (height, width), one number for a square; `frames` and
    `temporal_patch_size` are voxels along the CT z axis; `spacing` is mm between voxels (z, x, y).
    """

    image_size: tuple[int, int] | int | None = None
    patch_size: tuple[int, int] | int | None = None
    temporal_patch_size: int | None = None
    frames: int | None = None
    text_heads: int | None = None
    spacing: tuple[float, float, float] | None = None


def reject_version_1(tensors: Mapping[str, np.ndarray], *, source: str) -> None:
    """Raises InputError for a model of version 1, by the length of its patches alone: other keys
    differ too, and a list of them would hide the cause."""
    for key, value in tensors.items():
        if key.startswith(f"{IMAGE}to_patch_emb.") and value.shape[-1:] == (V1_PATCH_VOXELS,):
            raise InputError(
                f"{source}: a CT-CLIP version 1 model (patches of 30 x 30 x 15 voxels);"
                " only version 2 is supported"
            )


def read_sizes(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, int], list[str]]:
    """Returns the sizes of a state dict, as far as it has their tensors, and as problems those of
    another number of axes."""
    sizes, problems = {}, []
    for name, (key, axes, axis) in (IMAGE_SIZES | TEXT_SIZES | CLASSIFIER_SIZES).items():
        if key not in tensors:
            continue
        shape = tensors[key].shape
        if len(shape) != axes or 0 in shape:
            problems.append(f"{key} of shape {shape} instead of {axes} axes")
        else:
            sizes[name] = shape[axis]
    return sizes, problems


def read_config(
    sizes: Mapping[str, int], depths: Depths, *, geometry: Geometry, source: str
) -> CTCLIPConfig:
    """Returns the config of a state dict with all `IMAGE_SIZES`, and `TEXT_SIZES` for a text tower.

    Raises InputError if a field of `Geometry` has to be passed.
    """
    geometry = _infer_geometry(sizes, geometry, source=source)
    image = CTViTConfig(
        image_size=geometry.image_size,
        patch_size=geometry.patch_size,
        frames=geometry.frames,
        temporal_patch_size=geometry.temporal_patch_size,
        spacing=geometry.spacing,
        spatial_depth=depths.spatial,
        temporal_depth=depths.temporal,
        **{name: sizes[name] for name in ("dim", "heads", "dim_head", "codebook_size")},
    )
    if not depths.text:
        return CTCLIPConfig(image=image)
    bert_sizes = ("vocab_size", "hidden_size", "intermediate_size", "max_positions", "token_types")
    bert = BertConfig(
        num_layers=depths.text,
        num_heads=geometry.text_heads,
        **{name: sizes[name] for name in bert_sizes},
    )
    return CTCLIPConfig(
        image=image,
        text=bert,
        dim_latent=sizes["dim_latent"],
        num_labels=sizes.get("num_labels", 0),
    )


def _pair(value: tuple[int, int] | int | None) -> tuple[int, int] | None:
    return (value, value) if isinstance(value, int) else value and tuple(value)


def _infer_geometry(sizes: Mapping[str, int], geometry: Geometry, *, source: str) -> Geometry:
    """Fills in the fields of `geometry` that are None; raises InputError if one stays open."""
    # The embedding of patches reads slices * height * width voxels, the unused one of first frames
    # height * width: their ratio is the temporal patch size, but height : width stays open.
    slices, remainder = divmod(sizes["patch_voxels"], sizes["frame_voxels"])
    patch_size = _pair(geometry.patch_size)
    if patch_size is None and sizes["frame_voxels"] == math.prod(PUBLISHED.patch_size):
        patch_size = PUBLISHED.patch_size
    image_size, frames = _pair(geometry.image_size), geometry.frames
    published_features = CTViTConfig(dim=sizes["dim"]).features
    if (
        patch_size == PUBLISHED.patch_size
        and slices == PUBLISHED.temporal_patch_size
        and sizes.get("image_features", published_features) == published_features
    ):
        image_size, frames = image_size or PUBLISHED.image_size, frames or PUBLISHED.frames
    # No shape depends on the number of heads; BERT models have heads of 64.
    hidden_size, heads = sizes.get("hidden_size"), geometry.text_heads
    if hidden_size is None:
        hidden_size, heads = BertConfig.hidden_size, BertConfig.num_heads
    elif heads is None and hidden_size % BERT_HEAD_SIZE == 0:
        heads = hidden_size // BERT_HEAD_SIZE
    inferred = Geometry(
        image_size=image_size,
        patch_size=patch_size,
        temporal_patch_size=geometry.temporal_patch_size or (None if remainder else slices),
        frames=frames,
        text_heads=heads,
        spacing=tuple(geometry.spacing or PUBLISHED.spacing),
    )
    missing = [name for name, value in dataclasses.asdict(inferred).items() if value is None]
    if missing:
        raise InputError(
            f"{source}: cannot infer {', '.join(missing)} from tensor shapes; pass"
            f" {', '.join(f'--{name}' for name in missing)}"
        )
    for name, whole, part in (
        ("frames", frames, inferred.temporal_patch_size),
        ("image height", image_size[0], patch_size[0]),
        ("image width", image_size[1], patch_size[1]),
        ("text hidden size", hidden_size, heads),
    ):
        if whole % part:
            raise InputError(f"{source}: {name} {whole} is not divisible by {part}")
    return inferred
