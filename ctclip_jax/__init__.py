"""CT-CLIP in JAX: chest CT volumes and radiology reports in one space (arXiv 2403.17834)."""

from ctclip_jax.api import Model, load
from ctclip_jax.version import __version__

__all__ = ["Model", "__version__", "load"]
