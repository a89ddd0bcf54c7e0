"""A fake CTCLIP whose train step compiles in a second: linear towers, a real codebook."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ctclip_jax.common.shapes import Array, Variables
from ctclip_jax.models import vector_quantizer
from ctclip_jax.models.layers import dropout, l2_normalize

CODES, DECAY = 16, 0.8


@dataclasses.dataclass(frozen=True)
class FakeCLIP:
    """`image` is (b t 6) tokens, `input_ids` (b 4) or (b k 4) features.

    Dropout acts on texts, and on the image latents that a classifier of `num_labels` reads; a
    classifier of `num_report_labels` reads text latents.
    """

    logit_bias: float | None = None
    num_labels: int = 0
    num_report_labels: int = 0

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
        if self.num_labels:
            bias = draw(self.num_labels)
            params["classifier"] = {"kernel": draw(3, self.num_labels), "bias": bias}
        if self.num_report_labels:
            params["report_classifier"] = {"kernel": draw(3, self.num_report_labels)}
        codebook = vector_quantizer.init(jax.random.key(0), codes=CODES, dim=8)
        return {"params": params, "codebook": codebook}

    def abstract_variables(self) -> Variables:
        return jax.eval_shape(self.init)

    def encode(
        self, variables, batch, *, text_dropout_keys, quantize, patch_dropout_keys=None
    ) -> tuple[dict[str, Array], dict]:
        params, codebook = variables["params"], variables["codebook"]
        del patch_dropout_keys
        latents = {}
        if "input_ids" in batch:
            latents["text"] = self.encode_text(
                variables, batch["input_ids"], None, dropout_keys=text_dropout_keys
            )
        if "latent" in batch:
            return latents | {"image": batch["latent"]}, {}
        if "image" not in batch:
            return latents, {}
        tokens = jnp.tanh(batch["image"] @ params["image"]["blocks"]["up"]["kernel"].sum(axis=0))
        indices = vector_quantizer.nearest(tokens, codebook)
        codes = vector_quantizer.lookup(indices, codebook)
        mixed = vector_quantizer.straight_through(tokens, codes, quantize)
        projected = mixed.mean(axis=1) @ params["image_projection"]["kernel"]
        latents["image"] = l2_normalize(projected)
        return latents, vector_quantizer.statistics(tokens, indices, codes=CODES)

    def encode_text(self, variables, input_ids, attention_mask, *, dropout_keys=None) -> Array:
        del attention_mask
        kernel = variables["params"]["text"]["kernel"]
        flat = dropout(input_ids, 0.3, dropout_keys).reshape(-1, input_ids.shape[-1])
        return l2_normalize(flat @ kernel)

    def outputs(self, params, latents, *, dropout_keys=None) -> dict[str, Array]:
        outputs = {**latents, "temperature": jnp.exp(params["temperature"])}
        if "classifier" in params:
            kernel, bias = params["classifier"]["kernel"], params["classifier"]["bias"]
            outputs["logits"] = dropout(latents["image"], 0.3, dropout_keys) @ kernel + bias[None]
        if "report_classifier" in params:
            outputs["report_logits"] = latents["text"] @ params["report_classifier"]["kernel"]
        return outputs | ({"bias": params["logit_bias"]} if "logit_bias" in params else {})

    def update_codebook(self, codebook, statistics):
        return vector_quantizer.update(codebook, statistics, decay=DECAY)


def fake_batch(volumes: int, texts: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of noise with two duplicates, a quarter of it normal."""
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
        "labels": rng.integers(-1, 2, (volumes, 18)).astype(np.int8),
        "seed": rng.integers(2**31, size=volumes, dtype=np.int32),
    }
