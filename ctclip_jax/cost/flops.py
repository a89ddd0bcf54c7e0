"""FLOP counts: model FLOPs for MFU, and the FLOPs of a traced program; a multiply-add is two.

Model FLOPs are those of the mathematics: matrix products and attention of both towers, projections,
and the search of the quantizer, each once. Norms, activations, position bias and encoding are left
out (1 %). A program computes more, mostly by recomputing activations.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from ctclip_jax.common import trees
from ctclip_jax.models.bert import BertConfig
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from ctclip_jax.models.lora import abstract_params
from ctclip_jax.models.vit import ViTConfig
from ctclip_jax.training.config import PROMPT_TOKENS, TrainConfig
from data_pipelines.reports import LABELS


def volume_flops(config: CTCLIPConfig, *, train: bool = False) -> float:
    """Returns the model FLOPs of the latent of one volume, without the quantizer's search.

    With `train`, without the patches that a tower drops in training.
    """
    image = config.image
    params = trees.flatten(CTCLIP(config).abstract_variables()["params"]["image"])
    kernels = {
        name: leaf.size
        for name, leaf in params.items()
        if re.search(r"(patch_embed|attn|ff)/.*kernel$", name)
    }
    if isinstance(image, ViTConfig):
        tokens = image.num_visible_tokens if train else image.num_tokens
        attention = 2 * image.depth * tokens * image.dim
        # The attention pool runs once for its one query, but for keys and values of all tokens.
        pool = sum(size for name, size in kernels.items() if name.startswith("pool/"))
        pool -= kernels["pool/attn/key_value/kernel"]
    else:
        t, h, w = image.grid
        tokens, pool = t * h * w, 0
        num_keys = image.spatial_depth * h * w + image.temporal_depth * t
        attention = 2 * num_keys * image.heads * image.dim_head
    per_token = sum(kernels.values()) - pool + attention
    return 2.0 * (tokens * per_token + pool) + _projection_flops(config)


def _projection_flops(config: CTCLIPConfig) -> float:
    return 2.0 * config.image.features * config.dim_latent


def search_flops(config: CTCLIPConfig) -> float:
    """Returns the model FLOPs of the nearest codes of one volume's tokens; it has no gradient."""
    image = config.image
    if isinstance(image, ViTConfig):
        return 0.0
    return 2.0 * math.prod(image.grid) * image.codebook_size * image.dim


def text_flops(config: BertConfig, length: int) -> float:
    """Returns the model FLOPs of the text tower on `length` tokens."""
    size = config.hidden_size
    kernels = 4 * size * size + 2 * size * config.intermediate_size
    return 2.0 * config.num_layers * length * (kernels + 2 * length * size)


def step_flops(config: TrainConfig) -> float:
    """Returns the model FLOPs of one training step, over all devices.

    The backward pass costs twice the forward; an encoder that is frozen as a whole has none. Texts
    that the loss does not read and volumes with frozen latents are not encoded.
    """
    model = config.model
    names = trees.flatten(abstract_params(CTCLIP(model).init, config.lora))
    rates = trees.match_rules(config.optim.rules, names, default=1.0)

    def passes(tower: str, encoder: float, projection: float) -> float:
        """FLOPs of all passes of an encoder and its projection, from those of one forward pass."""
        encoder_names = re.compile(f"(lora/)?{tower}/")
        if any(rates[name] for name in names if encoder_names.match(name)):
            return 3 * (encoder + projection)
        # Behind a frozen encoder, the projection has a gradient of its kernel, not of its input.
        return encoder + (2 if rates[f"{tower}_projection/kernel"] else 1) * projection

    def texts(count: int, length: int) -> float:
        projection = 2.0 * model.text.hidden_size * model.dim_latent
        return count * passes("text", text_flops(model.text, length), projection)

    flops = 0.0
    if config.loss.reads_volumes and not config.data.frozen_latents:
        projection = _projection_flops(model)
        volume = passes("image", volume_flops(model, train=True) - projection, projection)
        flops += config.batch_size * (volume + search_flops(model))
    if config.loss.reads_texts:
        flops += texts(config.batch_size * config.data.texts_per_volume, config.data.max_length)
    if config.loss.name == "prompts":
        flops += texts(2 * len(LABELS), PROMPT_TOKENS)
    return flops


class Product(NamedTuple):
    """A matrix product of a traced program.

    Attributes:
      op_name: its named scopes, outermost first.
      operands: dtypes and shapes.
      flops: of one execution, over all devices.
      runs: executions in a run of the program.
    """

    op_name: str
    operands: str
    flops: float
    runs: int


def program_flops(program: ClosedJaxpr | Jaxpr) -> float:
    """Returns the FLOPs of the matrix products of a traced program, over all devices.

    Unlike in XLA's cost analysis, the body of a loop counts as often as it runs (once in a
    `while`), as does that of a Pallas kernel. Recomputation counts; of the branches of a `cond`,
    the most expensive one.
    """
    return sum(map(_equation_flops, program.eqns))


def float32_products(
    program: ClosedJaxpr | Jaxpr,
    *,
    above: float = 1e9,
    scope: str = "",
    runs: int = 1,
    devices: int = 1,
) -> Iterator[Product]:
    """Yields the products of float32 operands above some FLOPs, in the program's order.

    A GPU computes them without tensor cores, a TPU in several passes. In a step in bfloat16 they
    come from float32 cotangents (of `preferred_element_type`) and from forgotten casts. `scope`,
    `runs` and `devices` (those that a shard_map cuts its shapes over) are those of a program that
    `program` is part of.
    """
    for equation in program.eqns:
        name = f"{scope}/{equation.source_info.name_stack}".strip("/")
        outer = {
            "scope": name,
            "runs": runs * _rounds(equation),
            "devices": devices * _devices(equation),
        }
        for inner in _programs(equation.params):
            yield from float32_products(inner, above=above, **outer)
        if equation.primitive.name == "dot_general":
            operands = [variable.aval for variable in equation.invars]
            flops = devices * _equation_flops(equation)
            if flops > above and any(operand.dtype == jnp.float32 for operand in operands):
                shapes = " x ".join(operand.str_short(short_dtypes=True) for operand in operands)
                yield Product(name, shapes, flops, runs)


def _equation_flops(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        sums = math.prod(shape[axis] for axis in contracted)
        return 2.0 * equation.outvars[0].aval.size * sums
    if match := re.match("dot_product_attention_(fwd|bwd)_wrapper", name):
        # cuDNN's; the backward recomputes the logits: five products for the forward's two.
        query, key = (variable.aval for variable in equation.invars[:2])  # (b n heads c)
        return 2.0 * (2 if match[1] == "fwd" else 5) * query.size * key.shape[1]
    inner = [program_flops(program) for program in _programs(params)]
    if name == "cond":
        return max(inner)
    return float(_rounds(equation) * _devices(equation) * sum(inner))


def _rounds(equation: JaxprEqn) -> int:
    """Executions of the programs inside an equation."""
    if equation.primitive.name == "pallas_call":
        return math.prod(equation.params["grid_mapping"].grid)
    return equation.params["length"] if equation.primitive.name == "scan" else 1


def _devices(equation: JaxprEqn) -> int:
    """Devices that each run the programs inside an equation, on their part of its operands."""
    return equation.params["mesh"].size if equation.primitive.name == "shard_map" else 1


def _programs(params: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    """The programs inside an equation: bodies, branches, called functions."""
    for value in params.values():
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, (ClosedJaxpr, Jaxpr)):
                yield item
