"""A stand-in for CTCLIP whose train step compiles in a second: linear towers, a real codebook."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ctclip_jax.models import vector_quantizer
from ctclip_jax.models.layers import dropout, l2_normalize
from ctclip_jax.shapes import Array, Variables

CODES, DECAY = 16, 0.8


@dataclasses.dataclass(frozen=True)
class FakeCLIP:
    """`image` is (b t 6) tokens, `input_ids` (b 4) or (b k 4) features; dropout acts on text."""

    logit_bias: float | None = None

    def init(self) -> Variables:
        rng = np.random.default_rng(0)
        draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
        params = {
            "image": {"blocks": {"up": {"kernel": draw(2, 6, 8)}}},
            "image_projection": {"kernel": draw(8, 3)},
            "text": {"kernel": draw(4, 3)},
            "temperature": jnp.float32(0.5),
        }
        if self.logit_bias is not None:
            params["logit_bias"] = jnp.float32(self.logit_bias)
        codebook = vector_quantizer.init(jax.random.key(0), codes=CODES, dim=8)
        return {"params": params, "codebook": codebook}

    def abstract_variables(self) -> Variables:
        return jax.eval_shape(self.init)

    def encode(self, variables, batch, *, keys, quantize) -> tuple[dict[str, Array], dict]:
        params, codebook = variables["params"], variables["codebook"]
        tokens = jnp.tanh(batch["image"] @ params["image"]["blocks"]["up"]["kernel"].sum(axis=0))
        indices = vector_quantizer.nearest(tokens, codebook)
        codes = vector_quantizer.lookup(indices, codebook)
        mixed = vector_quantizer.straight_through(tokens, codes, quantize)
        ids = batch["input_ids"]
        text = dropout(ids, 0.3, keys).reshape(-1, ids.shape[-1]) @ params["text"]["kernel"]
        latents = {
            "image": l2_normalize(mixed.mean(axis=1) @ params["image_projection"]["kernel"]),
            "text": l2_normalize(text),
        }
        return latents, vector_quantizer.statistics(tokens, indices, codes=CODES)

    def outputs(self, params, latents) -> dict[str, Array]:
        outputs = {**latents, "temperature": jnp.exp(params["temperature"])}
        return outputs | ({"bias": params["logit_bias"]} if "logit_bias" in params else {})

    def move_codebook(self, codebook, statistics):
        return vector_quantizer.update(codebook, statistics, decay=DECAY)


def fake_batch(volumes: int, texts: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of noise with two twins, a quarter of it normal."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=(volumes, *shape)).astype(np.float32)  # noqa: E731
    scan = np.arange(volumes, dtype=np.int32)
    scan[-1] = 2
    return {
        "image": draw(5, 6),
        "input_ids": draw(texts, 4) if texts > 1 else draw(4),
        "scan": scan,
        "report": scan,
        "normal": scan % 4 == 1,
        "seed": rng.integers(2**31, size=volumes, dtype=np.int32),
    }
