"""PyTorch state dicts with the published names to variables and back.

Strict: one error lists every missing, unexpected or wrongly shaped key.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from absl import logging

from ctclip_jax.checkpoints.torch_geometry import (
    IMAGE_RANKS,
    TEXT_RANKS,
    Geometry,
    count_layers,
    read_config,
)
from ctclip_jax.checkpoints.torch_names import (
    DROPPED,
    IMAGE,
    OPTIONAL,
    Depths,
    Slot,
    torch_shape,
    unused_constants,
    unused_keys,
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
    duplicate or wrongly shaped key; also for version 1 models.
    """
    tensors, problems = _canonical(tensors, source=source)
    dropped = sorted(key for key in tensors if DROPPED.fullmatch(key))
    if dropped:
        logging.info("%s: dropped %s", source, ", ".join(dropped))
    tensors = {key: value for key, value in tensors.items() if key not in dropped}
    depths = count_layers(tensors)
    text = any(not key.startswith(IMAGE) for key in tensors)
    classifier = has_classifier(tensors)
    slots = used_keys(depths, text=text, classifier=classifier)
    unused = unused_keys(depths, text=text)
    problems += _wrong_names(tensors, slots.keys() | unused)
    ranks = IMAGE_RANKS | (TEXT_RANKS if text else {})
    wrong_ranks = _wrong_ranks(tensors, ranks)
    problems += wrong_ranks
    # The config needs only some shapes. Once those are readable, it says what all others must be.
    if ranks.keys() <= tensors.keys() and not wrong_ranks:
        shapes = {key: value.shape for key, value in tensors.items()}
        config = read_config(
            shapes, depths, geometry=geometry or Geometry(), text=text, source=source
        )
        if "classifier.bias" in tensors:
            config = dataclasses.replace(config, num_labels=tensors["classifier.bias"].size)
        problems += _wrong_tensors(tensors, _expected_shapes(slots, config=config, text=text))
    if problems:
        raise InputError(f"{source}: {', '.join(problems)}")
    variables = _build(tensors, slots)
    unused_tensors = {key: tensors[key] for key in unused & tensors.keys()}
    provenance = {
        "source": source,
        "dropped": dropped,
        "classifier": classifier,
        "converted_to_float32": {
            name: count
            for name, count in Counter(str(tensors[key].dtype) for key in slots).items()
            if name != "float32"
        },
        "parameters": _counts(variables),
        "unused_numbers": sum(value.size for value in unused_tensors.values()),
    }
    return ImportedWeights(config, variables, unused_tensors, provenance)


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
    leaves = flatten(variables)
    text = "params/temperature" in leaves
    depths = Depths(config.image.spatial_depth, config.image.temporal_depth, config.text.num_layers)
    slots = used_keys(depths, text=text, classifier="params/classifier/kernel" in leaves)
    if problems := sorted({slot.path for slot in slots.values()} ^ leaves.keys()):
        raise InputError(f"not in both the model and PyTorch's layout: {', '.join(problems)}")
    tensors = {}
    for key, slot in slots.items():
        leaf = np.asarray(leaves[slot.path])
        tensors[key] = slot.layout.to_torch(leaf if slot.layer is None else leaf[slot.layer])
    if unused is None:
        unused = {
            key: np.full(constant.shape, constant.value, np.float32)
            for key, constant in unused_constants(config, text=text).items()
        }
    return tensors | dict(unused)


def has_classifier(tensors: Tensors) -> bool:
    """Whether the tensors of a published file include a classifier, so were trained with labels."""
    return any(WRAPPERS.sub("", key).startswith(CLASSIFIER) for key in tensors)


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


def _wrong_ranks(tensors: Tensors, ranks: Mapping[str, int]) -> list[str]:
    return [
        f"{key} of shape {tensors[key].shape} instead of {rank} axes"
        for key, rank in ranks.items()
        if key in tensors and (tensors[key].ndim != rank or not tensors[key].size)
    ]


def _expected_shapes(
    slots: Mapping[str, Slot], *, config: CTCLIPConfig, text: bool
) -> dict[str, tuple[int, ...]]:
    """PyTorch shapes of all tensors, from the abstract variables of the model."""
    leaves = flatten(CTCLIP(config).abstract_variables())
    used = {
        key: torch_shape(leaves[slot.path].shape, slot)
        for key, slot in slots.items()
        if slot.path in leaves
    }
    constants = unused_constants(config, text=text)
    return used | {key: constant.shape for key, constant in constants.items()}


def _wrong_tensors(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Problems: wrong shapes, dtypes that are not floating, and betas other than zero.

    The published layer norms have no trained bias, but a constant `beta` buffer.
    """
    problems = [
        f"{key} of shape {tensors[key].shape} instead of {shape}"
        for key, shape in shapes.items()
        if key in tensors and tensors[key].shape != shape
    ]
    problems += [
        f"{key} of dtype {value.dtype}"
        for key, value in tensors.items()
        if key in shapes and value.dtype.kind in "biuc"
    ]
    problems += [
        f"nonzero {key}"
        for key, value in tensors.items()
        if key in shapes and key.endswith(".beta") and np.any(value)
    ]
    return problems


def _build(tensors: Tensors, slots: Mapping[str, Slot]) -> Variables:
    """The variables: tensors in our layout, those of layers stacked on a leading axis."""
    layers: dict[str, list[np.ndarray]] = {}
    for key, slot in slots.items():
        layers.setdefault(slot.path, []).append(slot.layout.from_torch(tensors[key]))
    stacked = {slot.path for slot in slots.values() if slot.layer is not None}
    return unflatten(
        {
            path: np.stack(parts, dtype=np.float32, casting="same_kind")
            if path in stacked
            else np.array(parts[0], dtype=np.float32, order="C")
            for path, parts in layers.items()
        }
    )


def _counts(variables: Variables) -> dict[str, int]:
    """Parameter counts of each part of the model, and in total."""
    parts = variables["params"] | {"codebook": variables["codebook"]}
    counts = {
        name: sum(leaf.size for leaf in flatten({"": part}).values())
        for name, part in parts.items()
    }
    return counts | {"total": sum(counts.values())}
