"""PyTorch state dicts with the published names to variables and back.

Strict: one error lists every missing, unexpected or wrongly shaped key.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from typing import Any

import jax
import numpy as np
from absl import logging

from ctclip_jax.checkpoints.tensor_files import check_finite
from ctclip_jax.checkpoints.torch_geometry import (
    IMAGE_SIZES,
    TEXT_SIZES,
    Geometry,
    read_config,
    read_sizes,
    reject_version_1,
)
from ctclip_jax.checkpoints.torch_names import (
    DROPPED,
    IMAGE,
    OPTIONAL,
    Depths,
    Slot,
    count_layers,
    unused_keys,
    unused_tensors,
    used_keys,
)
from ctclip_jax.common.shapes import Variables
from ctclip_jax.common.trees import flatten, unflatten
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from data_pipelines.errors import InputError

WRAPPERS = re.compile(r"^(module\.|trained_model\.)+")
CLASSIFIER = "classifier."
Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ImportedWeights:
    """A PyTorch state dict as a config and variables.

    Attributes:
      config: read from the shapes; of a bare image encoder, its text tower is only a default.
      variables: float32 copies; of a bare image encoder, those of the image tower alone.
      unused: tensors that the published model never uses, by PyTorch key, unchanged; with them an
        export is bit for bit the imported file.
      provenance: what was read, dropped and converted.
    """

    config: CTCLIPConfig
    variables: Variables
    unused: dict[str, np.ndarray]
    provenance: dict[str, Any]


def import_weights(
    tensors: Tensors, *, source: str, geometry: Geometry | None = None
) -> ImportedWeights:
    """Converts a state dict with the published names.

    Accepts the prefixes of CT-CLIP's trainers ('module.', 'trained_model.'), a classifier, and a
    bare image encoder. Raises InputError, which names `source` and lists every missing, unexpected,
    duplicate or wrongly shaped key; also for version 1 models and weights that are not finite.
    """
    tensors, problems = _canonical(tensors, source=source)
    reject_version_1(tensors, source=source)
    dropped = sorted(key for key in tensors if DROPPED.fullmatch(key))
    if dropped:
        logging.info("%s: dropped %s", source, ", ".join(dropped))
    tensors = {key: value for key, value in tensors.items() if key not in dropped}
    depths = count_layers(tensors)
    classifier = has_classifier(tensors)
    slots, unused = used_keys(depths, classifier=classifier), unused_keys(depths)
    problems += _wrong_names(tensors, slots.keys() | unused.keys())
    sizes, wrong_axes = read_sizes(tensors)
    problems += wrong_axes
    # The config needs only some shapes. Once those are readable, it says what all others must be.
    needed = IMAGE_SIZES | (TEXT_SIZES if depths.text else {})
    if needed.keys() <= sizes.keys():
        config = read_config(sizes, depths, geometry=geometry or Geometry(), source=source)
        abstract = CTCLIP(config).abstract_variables()
        if not depths.text:
            abstract["params"] = {"image": abstract["params"]["image"]}
        problems += _wrong_tensors(tensors, published_shapes(abstract, config=config))
    if problems:
        raise InputError(f"{source}: {', '.join(problems)}")
    check_finite({key: tensors[key] for key in slots}, source=source)
    variables = _build(tensors, slots, abstract)
    never_used = {key: tensors[key] for key in unused if key in tensors}
    dtypes = Counter(str(tensors[key].dtype) for key in slots)
    del dtypes["float32"]
    provenance = {
        "source": source,
        "dropped": dropped,
        "classifier": classifier,
        "converted_to_float32": dict(dtypes),
        "parameters": _counts(variables),
        "unused_numbers": sum(value.size for value in never_used.values()),
    }
    return ImportedWeights(config, variables, never_used, provenance)


def export_weights(
    variables: Variables,
    *,
    config: CTCLIPConfig,
    unused: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Returns a float32 state dict with the published names, which PyTorch loads strictly.

    `unused` are those of an import; without them (a model trained here) tensors that the model
    never uses are zeros, or ones for scales. Raises InputError if the variables do not fit the
    published layout: another image tower, or a logit bias.
    """
    if getattr(config.image, "pool", "") != "flatten":
        raise InputError("no published PyTorch layout but for CT-ViT with image.pool='flatten'")
    leaves = flatten(jax.tree.map(np.asarray, variables))
    text_depth = config.text.num_layers if "params/temperature" in leaves else 0
    depths = Depths(config.image.spatial_depth, config.image.temporal_depth, text_depth)
    slots = used_keys(depths, classifier="params/classifier/kernel" in leaves)
    if problems := sorted({slot.path for slot in slots.values()} ^ leaves.keys()):
        raise InputError(f"not in both the model and PyTorch's layout: {', '.join(problems)}")
    tensors = {
        key: slot.layout.to_torch(leaves[slot.path][slot.layer]) for key, slot in slots.items()
    }
    return tensors | dict(unused_tensors(config, depths) if unused is None else unused)


def published_shapes(abstract: Variables, *, config: CTCLIPConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor with a published name, of abstract variables."""
    views = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract)
    return {key: value.shape for key, value in export_weights(views, config=config).items()}


def has_classifier(names: Iterable[str]) -> bool:
    """Whether a published file's tensors include a classifier, so were trained with labels."""
    return any(WRAPPERS.sub("", name).startswith(CLASSIFIER) for name in names)


def _canonical(tensors: Tensors, *, source: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the tensors without the prefixes of wrappers, and the duplicate keys as problems."""
    names = {key: WRAPPERS.sub("", key) for key in tensors}
    if not any(name.startswith(IMAGE) for name in names.values()):
        if not any(name.startswith("to_patch_emb.") for name in names.values()):
            raise InputError(f"{source}: not CT-CLIP weights: no key starts with {IMAGE}")
        names = {
            key: name if name.startswith(CLASSIFIER) else IMAGE + name
            for key, name in names.items()
        }
    duplicates = [name for name, count in Counter(names.values()).items() if count > 1]
    canonical = {name: tensors[key] for key, name in names.items()}
    return canonical, [f"duplicate {name}" for name in sorted(duplicates)]


def _wrong_names(tensors: Tensors, expected: Set[str]) -> list[str]:
    missing = sorted(key for key in expected - tensors.keys() if not OPTIONAL.fullmatch(key))
    unexpected = sorted(tensors.keys() - expected)
    return [f"missing {key}" for key in missing] + [f"unexpected {key}" for key in unexpected]


def _wrong_tensors(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Problems: wrong shapes, dtypes that are not floating, and betas other than zero.

    The published layer norms have no trained bias, but a constant `beta` buffer.
    """
    problems = []
    for key in shapes.keys() & tensors.keys():
        value = tensors[key]
        if value.shape != shapes[key]:
            problems.append(f"{key} of shape {value.shape} instead of {shapes[key]}")
        if value.dtype.kind in "biuc":
            problems.append(f"{key} of dtype {value.dtype}")
        if key.endswith(".beta") and np.any(value):
            problems.append(f"nonzero {key}")
    return sorted(problems)


def _build(tensors: Tensors, slots: Mapping[str, Slot], abstract: Variables) -> Variables:
    """The variables, float32: tensors in our layout, each in its array or layer of one."""
    leaves = {path: np.empty(leaf.shape, np.float32) for path, leaf in flatten(abstract).items()}
    for key, slot in slots.items():
        leaves[slot.path][slot.layer] = slot.layout.from_torch(tensors[key])
    return unflatten(leaves)


def _counts(variables: Variables) -> dict[str, int]:
    """Parameter counts of each part of the model, and in total."""
    parts = variables["params"] | {"codebook": variables["codebook"]}
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in parts.items()
    }
    return counts | {"total": sum(counts.values())}
