"""CT-CLIP: image and text tower, projections into one latent space, classifiers (arXiv 2403.17834).

A `CTCLIP` holds no arrays: its variables are a plain dict `{'params': ..., 'codebook': ...}`.
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
from ctclip_jax.models.ct_vit import CTViT, CTViTConfig, pool_tokens
from ctclip_jax.models.kernels.attention import AttentionImplementation
from ctclip_jax.models.kernels.products import blockwise_product
from ctclip_jax.models.layers import (
    Dtype,
    Execution,
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
      attention: kernel of attention (kernels/attention.py), the same function; "auto" is that of
        the platform.
      scan_layers: compile a layer once for all of its tower (`lax.scan`): compiles faster, trains
        more slowly; the same numbers.
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
    attention: AttentionImplementation = "auto"
    scan_layers: bool = False


@dataclasses.dataclass(frozen=True)
class CTCLIP:
    """Pure functions of `variables`; hashable, so that it can be a static argument under `jit`.

    float32 means float32 on every backend: matrix products ask for the highest precision.
    """

    config: CTCLIPConfig

    @property
    def quantizes(self) -> bool:
        """Whether the image tower has a codebook."""
        return isinstance(self.config.image, CTViTConfig)

    def init(self, key: Key) -> Variables:
        """New variables: float32 parameters and a random unit codebook; {} without a quantizer."""
        config, keys = self.config, jax.random.split(key, 5)
        image, dense = config.image, torch_linear_init()
        params = {
            "image": nnx_bridge.init(self._image_tower, keys[0]),
            "text": nnx_bridge.init(self._text_tower, keys[1]),
            "image_projection": {"kernel": dense(keys[2], (image.features, config.dim_latent))},
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
        for number, (name, num_labels) in enumerate(classifiers):
            if num_labels:
                # Folded in, not split: a model with a classifier begins with the towers of the
                # same model without one.
                kernel = dense(jax.random.fold_in(key, number), (config.dim_latent, num_labels))
                params[name] = {"kernel": kernel, "bias": jnp.zeros(num_labels)}
        codebook = {}
        if self.quantizes:
            codebook = vector_quantizer.init(keys[4], codes=image.codebook_size, dim=image.dim)
        return {"params": params, "codebook": codebook}

    def abstract_variables(self) -> Variables:
        """Shapes and dtypes of the variables; allocates nothing."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def encode_image(
        self, variables: Variables, image: Num[Array, "b f h w"] | Num[Array, "b t h w p"]
    ) -> Float[Array, "b d"]:
        """Unit-length latents of CT volumes, or their patches, in [-1, 1] or int16 in 1/16 HU.

        Through a quantizer no gradient reaches the image tower (`encode` has one).
        """
        with jax.default_matmul_precision("float32"), jax.named_scope("image"):
            if self.quantizes:
                tokens = self.quantized_tokens(variables, image)
                features = pool_tokens(tokens, self.config.image.pool)
            else:
                features = self._bind_image_tower(variables)(image)
            return self.project_image(variables, features)

    def quantized_tokens(
        self, variables: Variables, image: Num[Array, "b f h w"] | Num[Array, "b t h w p"]
    ) -> Float[Array, "b t h w d"]:
        """The codes nearest to the tokens of CT volumes, for a tower that quantizes."""
        with jax.default_matmul_precision("float32"):
            tokens = self._bind_image_tower(variables)(image)
            with jax.named_scope("quantize"):
                codebook = variables["codebook"]
                return vector_quantizer.quantize(tokens, codebook, dtype=self.config.dtype)

    def project_image(
        self, variables: Variables, features: Float[Array, "b c"]
    ) -> Float[Array, "b d"]:
        """Unit-length latents of the features of the image tower."""
        with jax.named_scope("image_projection"):
            kernel = variables["params"]["image_projection"]["kernel"]
            return self._project(features, kernel, block=self.config.image.dim)

    def encode_text(
        self,
        variables: Variables,
        input_ids: Int[Array, "b l"],
        attention_mask: Int[Array, "b l"],
        *,
        dropout_keys: Key | None = None,
    ) -> Float[Array, "b d"]:
        """Unit-length latents of tokenized texts, from the first token ([CLS]).

        `dropout_keys` (b), one for each text, switch dropout on.
        """
        with jax.default_matmul_precision("float32"), jax.named_scope("text"):
            tower = nnx_bridge.bind(self._text_tower, variables["params"]["text"])
            hidden = tower(input_ids, attention_mask, dropout_keys=dropout_keys)
            kernel = variables["params"]["text_projection"]["kernel"]
            return self._project(hidden[:, 0], kernel, block=self.config.text.hidden_size)

    def encode(
        self,
        variables: Variables,
        batch: dict[str, Array],
        *,
        text_dropout_keys: Key | None = None,
        patch_dropout_keys: Key | None = None,
        quantize: Float[Array, ""] | float = 1.0,
    ) -> tuple[dict[str, Array], Statistics]:
        """Latents `{'image'[, 'text']}` as in training, and the statistics for `update_codebook`.

        Args:
          variables: of `init`.
          batch: `image` (b f h w), or its patches (b t h w p), or in its place `latent` (b d):
            latents that were computed before; without all there are no image latents. `input_ids`
            and `attention_mask`, if any, are (b l), or (b k l) for k texts of each volume, whose
            latents (b k, d) are adjacent.
          text_dropout_keys: (b), one for each volume: switch the dropout of its texts on.
          patch_dropout_keys: (b), one for each volume: draw the patches that are encoded.
          quantize: weight of the quantized against the plain tokens.

        Returns:
          The latents; the statistics of the batch's tokens, {} if nothing was quantized.
        """
        latents, statistics = {}, {}
        if "latent" in batch:
            latents["image"] = batch["latent"]
        elif "image" in batch:
            latents["image"], statistics = self._encode_image_in_training(
                variables, batch["image"], patch_dropout_keys, quantize
            )
        if "input_ids" in batch:
            ids, mask, keys = batch["input_ids"], batch["attention_mask"], text_dropout_keys
            if ids.ndim == 3:
                # One key for each text, in the order in which the rearranged rows stand.
                keys = None if keys is None else jnp.ravel(split_keys(keys, ids.shape[1]).T)
                ids, mask = (rearrange(x, "b k l -> (b k) l") for x in (ids, mask))
            latents["text"] = self.encode_text(variables, ids, mask, dropout_keys=keys)
        return latents, statistics

    def _encode_image_in_training(
        self,
        variables: Variables,
        image: Num[Array, "b f h w"] | Num[Array, "b t h w p"],
        patch_dropout_keys: Key | None,
        quantize: Float[Array, ""] | float,
    ) -> tuple[Float[Array, "b d"], Statistics]:
        with jax.default_matmul_precision("float32"), jax.named_scope("image"):
            tower, codebook = self._bind_image_tower(variables), variables["codebook"]
            if not self.quantizes:
                features = tower(image, patch_dropout_keys=patch_dropout_keys)
                return self.project_image(variables, features), {}
            tokens = tower(image)
            with jax.named_scope("quantize"):
                indices = vector_quantizer.nearest(tokens, codebook, dtype=self.config.dtype)
                codes = vector_quantizer.lookup(indices, codebook)
                mixed = vector_quantizer.straight_through(tokens, codes, quantize)
                statistics = vector_quantizer.statistics(
                    tokens, indices, codes=self.config.image.codebook_size
                )
            features = pool_tokens(mixed, self.config.image.pool)
            return self.project_image(variables, features), statistics

    def outputs(
        self, params: dict, latents: dict[str, Array], *, dropout_keys: Key | None = None
    ) -> dict[str, Array]:
        """The inputs of a loss: `latents`, the scale and bias of their similarities, and logits.

        Args:
          params: whole parameters.
          latents: of `encode`.
          dropout_keys: (b), one for each volume: switch the dropout of the classifier on.

        Returns:
          `{'image', 'text', 'temperature'[, 'bias', 'logits', 'report_logits']}`, as far as
          latents and parameters go.
        """
        outputs = {**latents, "temperature": jnp.exp(params["temperature"])}
        if "logit_bias" in params:
            outputs["bias"] = params["logit_bias"]
        if "classifier" in params and "image" in latents:
            # As published (ClassFine), the classifier reads the positive part of the latent.
            positive = jax.nn.relu(latents["image"])
            positive = dropout(positive, self.config.classifier_dropout, dropout_keys)
            outputs["logits"] = _linear(params["classifier"], positive)
        if "report_classifier" in params and "text" in latents:
            outputs["report_logits"] = _linear(params["report_classifier"], latents["text"])
        return outputs

    def update_codebook(self, codebook: Codebook, statistics: Statistics) -> Codebook:
        """The codebook after a training step on a batch with these statistics."""
        return vector_quantizer.update(codebook, statistics, decay=self.config.image.codebook_decay)

    def _image_tower(self, rngs: nnx.Rngs) -> CTViT | ViT:
        tower = CTViT if self.quantizes else ViT
        return tower(self.config.image, rngs, self._execution)

    def _bind_image_tower(self, variables: Variables) -> CTViT | ViT:
        return nnx_bridge.bind(self._image_tower, variables["params"]["image"])

    def _text_tower(self, rngs: nnx.Rngs) -> Bert:
        return Bert(self.config.text, rngs, self._execution)

    @property
    def _execution(self) -> Execution:
        config = self.config
        return Execution(config.dtype, config.remat, config.attention, config.scan_layers)

    def _project(
        self, features: Float[Array, "b c"], kernel: Float[Array, "c d"], *, block: int
    ) -> Float[Array, "b d"]:
        dtype = self.config.dtype
        return l2_normalize(
            blockwise_product(features.astype(dtype), kernel.astype(dtype), block=block)
        )


def _linear(params: dict[str, Array], x: Float[Array, "b d"]) -> Float[Array, "b labels"]:
    with jax.default_matmul_precision("float32"):
        return x @ params["kernel"] + params["bias"][None]
