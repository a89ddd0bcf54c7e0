"""A page on this machine: drop a chest CT, see what a model finds in it and where.

`python -m ctclip_jax.demo` opens it (docs/inference.md). It needs the extra `ctclip-jax[demo]`.
"""
