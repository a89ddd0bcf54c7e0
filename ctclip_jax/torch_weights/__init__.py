"""The published PyTorch weights, in and out."""

from ctclip_jax.torch_weights.exporter import export_weights
from ctclip_jax.torch_weights.files import (
    ENDINGS,
    read_tensors,
    says_label_informed,
    write_tensors,
)
from ctclip_jax.torch_weights.geometry import Geometry
from ctclip_jax.torch_weights.importer import ImportedWeights, has_classifier, import_weights

__all__ = [
    "ENDINGS",
    "Geometry",
    "ImportedWeights",
    "export_weights",
    "has_classifier",
    "import_weights",
    "read_tensors",
    "says_label_informed",
    "write_tensors",
]
