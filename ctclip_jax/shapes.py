"""Typed shapes. Axes: b batch, f frames, h w in-plane (voxels or grid), t grid depth, d channels.

`f` is the CT z axis (toward the head), `h` the x axis (toward Left), `w` the y axis (toward Posterior).
"""

from typing import Any

import jax
from jaxtyping import Array, Float, Int, Integer, Num, Scalar

Variables = dict[str, Any]  # {'params': nested dict, 'codebook': {'embed', 'cluster_size'}}
Key = jax.Array

__all__ = ["Array", "Float", "Int", "Integer", "Key", "Num", "Scalar", "Variables"]
