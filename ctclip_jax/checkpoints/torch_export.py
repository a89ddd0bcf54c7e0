"""From our variables to a PyTorch state dict that a strict load accepts."""

from collections.abc import Mapping

import numpy as np

from ctclip_jax.checkpoints.torch_names import Depths, unused_constants, used_keys
from ctclip_jax.common.shapes import Variables
from ctclip_jax.common.trees import flatten
from ctclip_jax.models.ct_clip import CTCLIPConfig
from data_pipelines.errors import InputError


def export_weights(
    variables: Variables,
    *,
    config: CTCLIPConfig,
    unused: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Returns the state dict with the published names and layouts, float32.

    `unused` are the tensors that an import kept aside; without them (a model trained here) the
    places that the model never uses are filled with zeros, or ones for scales. Raises InputError
    when the variables do not fit the published layout, as with a logit bias or another tower.
    """
    if getattr(config.image, "pool", "") != "flatten":
        raise InputError("PyTorch's layout knows no image tower but CT-ViT with its flat head")
    leaves = flatten(variables)
    text = "params/temperature" in leaves
    depths = Depths(config.image.spatial_depth, config.image.temporal_depth, config.text.num_layers)
    slots = used_keys(depths, text=text, classifier="params/classifier/kernel" in leaves)
    problems = sorted({slot.path for slot in slots.values()} ^ leaves.keys())
    if problems:
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
