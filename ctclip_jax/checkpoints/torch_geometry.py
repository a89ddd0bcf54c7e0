"""Model config from the tensor shapes of a PyTorch state dict."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

from ctclip_jax.checkpoints.torch_names import IMAGE, TEXT, Depths
from ctclip_jax.models.bert import BertConfig
from ctclip_jax.models.ct_clip import CTCLIPConfig
from ctclip_jax.models.ct_vit import CTViTConfig
from data_pipelines.errors import InputError

PUBLISHED = CTViTConfig()
BERT_HEAD_SIZE = 64
V1_PATCH_VOXELS = 15 * 30 * 30

_NORM_IN = f"{IMAGE}to_patch_emb.1.weight"
_FRAME_NORM_IN = f"{IMAGE}to_patch_emb_first_frame.1.weight"
_PROJ = f"{IMAGE}to_patch_emb.2.weight"
_BIAS_OUT = f"{IMAGE}spatial_rel_pos_bias.net.2.weight"
_QUERY_SCALE = f"{IMAGE}enc_spatial_transformer.layers.0.1.q_scale"
_CODES = f"{IMAGE}vq._codebook.embed"
_WORDS = f"{TEXT}embeddings.word_embeddings.weight"
_POSITIONS = f"{TEXT}embeddings.position_embeddings.weight"
_TOKEN_TYPES = f"{TEXT}embeddings.token_type_embeddings.weight"
_INTERMEDIATE = f"{TEXT}encoder.layer.0.intermediate.dense.weight"
_TEXT_LATENT = "to_text_latent.weight"
_IMAGE_LATENT = "to_visual_latent.weight"

IMAGE_RANKS = {_NORM_IN: 1, _FRAME_NORM_IN: 1, _PROJ: 2, _BIAS_OUT: 2, _QUERY_SCALE: 1, _CODES: 3}
TEXT_RANKS = {
    _WORDS: 2, _POSITIONS: 2, _TOKEN_TYPES: 2, _INTERMEDIATE: 2, _TEXT_LATENT: 2, _IMAGE_LATENT: 2
}  # fmt: skip


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


Shapes = Mapping[str, tuple[int, ...]]


def count_layers(keys: Iterable[str]) -> Depths:
    """Returns the number of layers of each transformer in the keys of a state dict, at least 1."""
    keys = list(keys)

    def depth(prefix: str) -> int:
        pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
        matches = (pattern.match(key) for key in keys)
        return 1 + max((int(match[1]) for match in matches if match), default=0)

    return Depths(
        spatial=depth(f"{IMAGE}enc_spatial_transformer.layers"),
        temporal=depth(f"{IMAGE}enc_temporal_transformer.layers"),
        text=depth(f"{TEXT}encoder.layer"),
    )


def read_config(
    shapes: Shapes, depths: Depths, *, geometry: Geometry, text: bool, source: str
) -> CTCLIPConfig:
    """Returns the config of a state dict that has the keys of `IMAGE_RANKS` (and `TEXT_RANKS`).

    Raises InputError for a version 1 model, and if a field of `Geometry` has to be passed.
    """
    if shapes[_NORM_IN][0] == V1_PATCH_VOXELS:
        raise InputError(
            f"{source}: a CT-CLIP version 1 model (patches of 30 x 30 x 15 voxels);"
            " only version 2 is supported"
        )
    geometry = _infer_geometry(shapes, geometry, text=text, source=source)
    image = CTViTConfig(
        dim=shapes[_PROJ][0],
        image_size=geometry.image_size,
        patch_size=geometry.patch_size,
        frames=geometry.frames,
        temporal_patch_size=geometry.temporal_patch_size,
        spatial_depth=depths.spatial,
        temporal_depth=depths.temporal,
        heads=shapes[_BIAS_OUT][0],
        dim_head=shapes[_QUERY_SCALE][0],
        codebook_size=shapes[_CODES][1],
        spacing=geometry.spacing,
    )
    if not text:
        return CTCLIPConfig(image=image)
    bert = BertConfig(
        vocab_size=shapes[_WORDS][0],
        hidden_size=shapes[_WORDS][1],
        num_layers=depths.text,
        num_heads=geometry.text_heads,
        intermediate_size=shapes[_INTERMEDIATE][0],
        max_positions=shapes[_POSITIONS][0],
        token_types=shapes[_TOKEN_TYPES][0],
    )
    return CTCLIPConfig(image=image, text=bert, dim_latent=shapes[_TEXT_LATENT][0])


def _pair(value: tuple[int, int] | int | None) -> tuple[int, int] | None:
    return (value, value) if isinstance(value, int) else value and tuple(value)


def _infer_geometry(shapes: Shapes, geometry: Geometry, *, text: bool, source: str) -> Geometry:
    """Fills in the fields of `geometry` that are None; raises InputError if one stays open."""
    # The embedding of patches reads slices * height * width voxels, the unused one of first frames
    # height * width: their ratio is the temporal patch size, but height : width stays open.
    frame_voxels = shapes[_FRAME_NORM_IN][0]
    slices, remainder = divmod(shapes[_NORM_IN][0], frame_voxels)
    patch_size = _pair(geometry.patch_size)
    if patch_size is None and frame_voxels == math.prod(PUBLISHED.patch_size):
        patch_size = PUBLISHED.patch_size
    image_size, frames = _pair(geometry.image_size), geometry.frames
    is_published = (
        patch_size == PUBLISHED.patch_size
        and slices == PUBLISHED.temporal_patch_size
        and (not text or shapes[_IMAGE_LATENT][1] == CTViTConfig(dim=shapes[_PROJ][0]).features)
    )
    if is_published:
        image_size, frames = image_size or PUBLISHED.image_size, frames or PUBLISHED.frames
    # No shape depends on the number of heads; BERT models have heads of 64.
    heads = geometry.text_heads
    if text and heads is None and shapes[_WORDS][1] % BERT_HEAD_SIZE == 0:
        heads = shapes[_WORDS][1] // BERT_HEAD_SIZE
    inferred = Geometry(
        image_size=image_size,
        patch_size=patch_size,
        temporal_patch_size=geometry.temporal_patch_size or (None if remainder else slices),
        frames=frames,
        text_heads=heads if text else BertConfig.num_heads,
        spacing=tuple(geometry.spacing or PUBLISHED.spacing),
    )
    missing = [name for name, value in dataclasses.asdict(inferred).items() if value is None]
    if missing:
        raise InputError(
            f"{source}: cannot infer {', '.join(missing)} from tensor shapes; pass"
            f" {', '.join(f'--{name}' for name in missing)}"
        )
    _check_division(inferred, hidden=shapes[_WORDS][1] if text else 0, source=source)
    return inferred


def _check_division(geometry: Geometry, *, hidden: int, source: str) -> None:
    divisions = (
        ("frames", geometry.frames, geometry.temporal_patch_size),
        ("image height", geometry.image_size[0], geometry.patch_size[0]),
        ("image width", geometry.image_size[1], geometry.patch_size[1]),
        ("text hidden size", hidden, geometry.text_heads),
    )
    for name, whole, part in divisions:
        if whole % part:
            raise InputError(f"{source}: {name} {whole} is not divisible by {part}")
