"""CT-CLIP: the two towers, their projections, and the temperature (arXiv 2403.17834).

A `CTCLIP` is only a description; its variables are a plain dict `{'params': ..., 'codebook': ...}`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from ctclip_jax.common.configs import FractionBelowOne, NonNegativeInt, PositiveInt
from ctclip_jax.common.shapes import Array, Float, Int, Key, Num, Variables
from ctclip_jax.models import nnx_bridge, vector_quantizer
from ctclip_jax.models.bert import Bert, BertConfig
from ctclip_jax.models.ct_vit import CTViT, CTViTConfig, pooled
from ctclip_jax.models.layers import (
    AttentionImplementation,
    Dtype,
    Remat,
    dropout,
    l2_normalize,
    split_keys,
    torch_linear_init,
)
from ctclip_jax.models.vector_quantizer import Codebook, Statistics
from ctclip_jax.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class CTCLIPConfig:
    """The model; the defaults are the published one.

    Attributes:
      dim_latent: width of the space that volumes and reports share.
      init_logit_scale_log: initial logarithm of the scale of the similarities.
      logit_bias: initial bias of the similarities, for the sigmoid loss; None: no such parameter.
      num_labels: outputs of a classifier on the image latents (ClassFine, LiPro); 0: none.
      classifier_dropout: of the image latents before that classifier, in training.
      num_report_labels: outputs of a classifier on the text latents; 0: none.
      dtype: of the large matrix products.
      remat: activations that the backward pass recomputes (layers.REMAT); same numbers.
      attention: kernel of the attention in the image tower; the same function.
    """

    image: CTViTConfig | ViTConfig = CTViTConfig()
    text: BertConfig = BertConfig()
    dim_latent: PositiveInt = 512
    init_logit_scale_log: float = 1.0
    logit_bias: float | None = None
    num_labels: NonNegativeInt = 0
    classifier_dropout: FractionBelowOne = 0.0
    num_report_labels: NonNegativeInt = 0
    dtype: Dtype = "float32"
    remat: Remat = "none"
    attention: AttentionImplementation = "xla"


@dataclasses.dataclass(frozen=True)
class CTCLIP:
    """Pure functions of `variables`: hashable, and free to be called under any JAX transform.

    float32 means float32 on every backend: matrix products ask for the highest precision.
    """

    config: CTCLIPConfig

    def init(self, key: Key) -> Variables:
        """New variables: float32 parameters and a random unit codebook."""
        config, keys = self.config, jax.random.split(key, 5)
        dense = torch_linear_init()
        params = {
            "image": nnx_bridge.init(self._image_tower, keys[0]),
            "text": nnx_bridge.init(self._text_tower, keys[1]),
            "image_projection": {
                "kernel": dense(keys[2], (config.image.features, config.dim_latent))
            },
            "text_projection": {
                "kernel": dense(keys[3], (config.text.hidden_size, config.dim_latent))
            },
            "temperature": jnp.array(config.init_logit_scale_log, jnp.float32),
        }
        if config.logit_bias is not None:
            params["logit_bias"] = jnp.array(config.logit_bias, jnp.float32)
        classifiers = (
            ("classifier", config.num_labels),
            ("report_classifier", config.num_report_labels),
        )
        for number, (name, labels) in enumerate(classifiers):
            if labels:
                kernel = dense(jax.random.fold_in(key, number), (config.dim_latent, labels))
                params[name] = {"kernel": kernel, "bias": jnp.zeros(labels)}
        return {"params": params, "codebook": self._new_codebook(keys[4])}

    def abstract_variables(self) -> Variables:
        """Shapes and dtypes of the variables, without memory."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def encode_image(
        self, variables: Variables, image: Num[Array, "b f h w"]
    ) -> Float[Array, "b d"]:
        """Unit-length latents of CT volumes in [-1, 1], or int16 in steps of 1/16 HU."""
        with jax.default_matmul_precision("float32"):
            if self.quantizes:
                features = pooled(self.quantized_tokens(variables, image), self.config.image.pool)
            else:
                features = self._image_tower_of(variables)(image)
            return self.project_image(variables, features)

    def quantized_tokens(
        self, variables: Variables, image: Num[Array, "b f h w"]
    ) -> Float[Array, "b t h w d"]:
        """The codes of the patches of CT volumes, for a tower that quantizes."""
        with jax.default_matmul_precision("float32"):
            tokens = self._image_tower_of(variables)(image)
            return vector_quantizer.quantize(tokens, variables["codebook"], dtype=self.config.dtype)

    def encode_text(
        self,
        variables: Variables,
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"],
        *,
        keys: Key | None = None,
    ) -> Float[Array, "b d"]:
        """Unit-length latents of tokenized reports; `keys`, one for each, switch dropout on."""
        with jax.default_matmul_precision("float32"), jax.named_scope("text"):
            first = self.read_text(variables, input_ids, attention_mask, keys=keys)[:, 0]
            return self._project(first, variables["params"]["text_projection"]["kernel"])

    def read_text(
        self,
        variables: Variables,
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"],
        *,
        keys: Key | None = None,
    ) -> Float[Array, "b l h"]:
        """The last hidden states of tokenized reports."""
        with jax.default_matmul_precision("float32"):
            tower = nnx_bridge.bind(self._text_tower, variables["params"]["text"])
            return tower(input_ids, attention_mask, keys=keys)

    def __call__(
        self,
        variables: Variables,
        batch: dict[str, Array],
        *,
        train: bool,
        keys: Key | None = None,
        patch_dropout_keys: Key | None = None,
        quantize: Float[Array, ""] | float = 1.0,
    ) -> tuple[dict[str, Array], Statistics | None]:
        """Both towers on a batch of `image`, `input_ids` and `attention_mask`.

        Returns `({'image', 'text', 'temperature'[, 'bias']}, statistics)`. In training the
        gradient passes the quantizer straight through, and `update_codebook` takes the statistics;
        otherwise the image tower gets no gradient and there are none, as published.
        """
        if train:
            latents, statistics = self.encode(
                variables,
                batch,
                keys=keys,
                patch_dropout_keys=patch_dropout_keys,
                quantize=quantize,
            )
        else:
            image = self.encode_image(variables, batch["image"])
            latents = {"image": image, "text": self._encode_texts(variables, batch, None)}
            statistics = None
        return self.outputs(variables["params"], latents), statistics

    def encode(
        self,
        variables: Variables,
        batch: dict[str, Array],
        *,
        keys: Key | None = None,
        patch_dropout_keys: Key | None = None,
        quantize: Float[Array, ""] | float = 1.0,
    ) -> tuple[dict[str, Array], Statistics]:
        """Latents `{'image'[, 'text']}` in training, and the statistics of the codebook.

        A batch with `latent` in place of `image` has been through the image tower, one with neither
        has no image latents: its statistics are {}. Texts may be absent; their ids are (b l), or
        (b k l) for k texts of each volume, whose latents (b k, d) stand together. `keys` (b), one
        for each volume, switch the dropout of texts on, `patch_dropout_keys` that of patches.
        `quantize` is the weight of the quantized against the plain tokens; a tower
        that does not quantize has no statistics.
        """
        latents, statistics = {}, {}
        if "latent" in batch:
            latents["image"] = batch["latent"]
        elif "image" in batch:
            latents["image"], statistics = self._encode_and_count(
                variables, batch["image"], patch_dropout_keys, quantize
            )
        if "input_ids" in batch:
            latents["text"] = self._encode_texts(variables, batch, keys)
        return latents, statistics

    def outputs(
        self, params: dict, latents: dict[str, Array], *, keys: Key | None = None
    ) -> dict[str, Array]:
        """What a loss takes: the latents, the factor on their similarities and their bias, and the
        `logits` and `report_logits` of the classifiers. `keys` (b), one for each volume, switch the
        dropout of the first on."""
        outputs = {**latents, "temperature": jnp.exp(params["temperature"])}
        if "logit_bias" in params:
            outputs["bias"] = params["logit_bias"]
        if "classifier" in params and "image" in latents:
            positive = jax.nn.relu(latents["image"])
            positive = dropout(positive, self.config.classifier_dropout, keys)
            outputs["logits"] = _linear(params["classifier"], positive)
        if "report_classifier" in params and "text" in latents:
            outputs["report_logits"] = _linear(params["report_classifier"], latents["text"])
        return outputs

    def update_codebook(self, codebook: Codebook, statistics: Statistics) -> Codebook:
        """The codebook after a training step on the batch of these statistics."""
        return vector_quantizer.update(codebook, statistics, decay=self.config.image.codebook_decay)

    @property
    def quantizes(self) -> bool:
        """Whether the image tower has a codebook."""
        return isinstance(self.config.image, CTViTConfig)

    def _new_codebook(self, key: Key) -> Codebook | dict:
        image = self.config.image
        if not self.quantizes:
            return {}
        return vector_quantizer.init(key, codes=image.codebook_size, dim=image.dim)

    def _encode_and_count(self, variables, image, keys, quantize):
        codebook = variables["codebook"]
        with jax.default_matmul_precision("float32"):
            tower = self._image_tower_of(variables)
            if not self.quantizes:
                return self.project_image(variables, tower(image, keys=keys)), {}
            tokens = tower(image)
            with jax.named_scope("quantize"):
                indices = vector_quantizer.nearest(tokens, codebook, dtype=self.config.dtype)
                codes = vector_quantizer.lookup(indices, codebook)
                mixed = vector_quantizer.straight_through(tokens, codes, quantize)
                statistics = vector_quantizer.statistics(
                    tokens, indices, codes=self.config.image.codebook_size
                )
            features = pooled(mixed, self.config.image.pool)
            return self.project_image(variables, features), statistics

    def _encode_texts(self, variables, batch, keys):
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if ids.ndim == 3:
            keys = None if keys is None else jnp.ravel(split_keys(keys, ids.shape[1]).T)
            ids, mask = (rearrange(each, "b k l -> (b k) l") for each in (ids, mask))
        return self.encode_text(variables, ids, mask, keys=keys)

    def _image_tower(self, rngs: nnx.Rngs) -> CTViT | ViT:
        config = self.config
        tower = CTViT if self.quantizes else ViT
        return tower(
            config.image, rngs, dtype=config.dtype, remat=config.remat, attention=config.attention
        )

    def _image_tower_of(self, variables: Variables) -> CTViT | ViT:
        return nnx_bridge.bind(self._image_tower, variables["params"]["image"])

    def _text_tower(self, rngs: nnx.Rngs) -> Bert:
        return Bert(self.config.text, rngs, dtype=self.config.dtype, remat=self.config.remat)

    def project_image(
        self, variables: Variables, features: Float[Array, "b c"]
    ) -> Float[Array, "b d"]:
        """Unit-length latents of what the image tower made of volumes."""
        with jax.named_scope("image_projection"):
            return self._project(features, variables["params"]["image_projection"]["kernel"])

    def _project(
        self, features: Float[Array, "b c"], kernel: Float[Array, "c d"]
    ) -> Float[Array, "b d"]:
        dtype = self.config.dtype
        product = jnp.matmul(
            features.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32
        )
        return l2_normalize(product)


def _linear(params: dict[str, Array], x: Float[Array, "b d"]) -> Float[Array, "b labels"]:
    with jax.default_matmul_precision("float32"):
        return x @ params["kernel"] + params["bias"][None]
