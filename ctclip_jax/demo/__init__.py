"""Local web page: drop a chest CT, see the findings of a model, their heatmaps and similar cases.

`python -m ctclip_jax.demo` serves it (docs/inference.md); needs the extra `ctclip-jax[demo]`.
"""
