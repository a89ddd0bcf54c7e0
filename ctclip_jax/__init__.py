"""CT-CLIP in JAX: chest CT volumes and radiology reports in one space (arXiv 2403.17834)."""

from typing import TYPE_CHECKING

from data_pipelines import lazy

if TYPE_CHECKING:
    from ctclip_jax.common.version import __version__ as __version__
    from ctclip_jax.inference.load import Model as Model
    from ctclip_jax.inference.load import load as load
    from data_pipelines.reports import LABELS as LABELS

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "ctclip_jax.common.version": "__version__",
        "ctclip_jax.inference.load": "Model load",
        "data_pipelines.reports": "LABELS",
    },
)
