"""CT-CLIP in JAX: chest CT volumes and radiology reports in one space (arXiv 2403.17834)."""

from ctclip_jax.common.version import __version__
from ctclip_jax.inference.load import Model, load

__all__ = ["Model", "__version__", "load"]
