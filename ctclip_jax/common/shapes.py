"""Typed shapes. Axes: b batch, f frames, h w in-plane (voxels or grid), t grid depth, d channels.

`f` is the CT z axis (toward Superior), `h` x (toward Left), `w` y (toward Posterior).
"""

from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int, Integer, Num, Scalar

Variables = dict[str, Any]  # {'params': nested dict, 'codebook': {'embed', 'cluster_size'}}
Key = jax.Array

__all__ = ["Array", "Bool", "Float", "Int", "Integer", "Key", "Num", "Scalar", "Variables"]
