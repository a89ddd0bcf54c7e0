"""CT-CLIP in JAX: chest CT volumes and radiology reports in one space (arXiv 2403.17834)."""

from ctclip_jax.api import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "load"]
