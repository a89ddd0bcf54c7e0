"""Latents on a plane, neighbors near each other."""

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

COMPONENTS, PERPLEXITY, MOST, FEWEST = 50, 30.0, 5000, 4


def latent_map(image: Float[np.ndarray, "n d"], seed: int) -> Float[np.ndarray, "n 2"] | None:
    """t-SNE of unit latents after PCA, in [0, 1]; the same for the same seed.

    Of more than MOST volumes an evenly spaced part is laid out; the others are NaN. None for fewer
    than FEWEST volumes, or if all are the same.
    """
    size = len(image)
    if size < FEWEST:
        return None
    rows = np.unique(np.linspace(0, size - 1, min(size, MOST)).round().astype(int))
    latents = image[rows].astype(np.float64)
    if (latents == latents[0]).all():
        return None
    reduced = PCA(min(COMPONENTS, *latents.shape), svd_solver="full").fit_transform(latents)
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    places = TSNE(
        perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed, n_jobs=-1
    ).fit_transform(reduced)
    places -= places.min(axis=0)
    extent = places.max(axis=0)
    laid = np.full((size, 2), np.nan)
    laid[rows] = (places + (extent.max() - extent) / 2) / extent.max()
    return laid
