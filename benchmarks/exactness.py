"""Numerical difference from the published PyTorch model, stage by stage, in float32.

    python -m benchmarks.exactness

The largest absolute difference from the outputs that the original recorded for a tiny model
(tests/golden/tiny.npz); gradients are relative to the largest entry of their tensor. And, at full
size, of the image projection of random weights from float64.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from ctclip_jax.checkpoints.torch_convert import export_weights, import_weights
from ctclip_jax.checkpoints.torch_geometry import Geometry
from ctclip_jax.models import nnx_bridge
from ctclip_jax.models.bert import Bert
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from ctclip_jax.models.ct_vit import CTViT
from ctclip_jax.models.layers import Execution
from ctclip_jax.training.losses import LossConfig, make_loss
from data_pipelines import command_line
from data_pipelines.patches import patchify

GOLDEN = Path(__file__).parents[1] / "tests/golden/tiny.npz"


def differences() -> dict[str, float]:
    """{stage: largest difference}."""
    with np.load(GOLDEN) as arrays:
        golden = dict(arrays)
    state = {name[6:]: value for name, value in golden.items() if name.startswith("state/")}
    geometry = Geometry(image_size=40, patch_size=10, frames=20, text_heads=2)
    imported = import_weights(state, source=str(GOLDEN), geometry=geometry)
    model, variables = CTCLIP(imported.config), imported.variables
    batch = {
        "image": golden["in/volume"][:, 0],
        "input_ids": golden["in/input_ids"],
        "attention_mask": golden["in/attention_mask"],
    }

    softmax_loss = make_loss(LossConfig("softmax"))
    image_tower = nnx_bridge.bind(
        lambda rngs: CTViT(
            model.config.image, rngs, Execution("float32", "none", "xla", scan=True)
        ),
        variables["params"]["image"],
    )
    text_tower = nnx_bridge.bind(
        lambda rngs: Bert(model.config.text, rngs, Execution("float32", "none", "xla", scan=True)),
        variables["params"]["text"],
    )
    texts = batch["input_ids"], batch["attention_mask"]
    latents = {
        "image": jax.jit(model.encode_image)(variables, batch["image"]),
        "text": jax.jit(model.encode_text)(variables, *texts),
    }
    outputs = model.outputs(variables["params"], latents)

    def loss(params: dict):
        latents, statistics = model.encode(variables | {"params": params}, batch)
        outputs = model.outputs(params, latents)
        codebook = model.update_codebook(variables["codebook"], statistics)
        return softmax_loss(outputs, batch)[0], codebook

    (_, codebook), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    exported = export_weights({"params": grads, "codebook": codebook}, config=model.config)
    expected = {name[5:]: value for name, value in golden.items() if name.startswith("grad/")}
    patches = patchify(batch["image"], model.config.image.patch)
    stages = {
        "patch_emb": jax.jit(image_tower.patch_embed)(patches),
        "temporal_out": jax.jit(image_tower)(batch["image"]),
        "bert_last_hidden_state": jax.jit(text_tower)(batch["input_ids"], batch["attention_mask"]),
        "image_latents": outputs["image"],
        "text_latents": outputs["text"],
        "loss": softmax_loss(outputs, batch)[0],
    }
    results = {name: _largest(value - golden[f"out/{name}"]) for name, value in stages.items()}
    # A gradient that is zero but for rounding (BERT's key bias) has no relative error.
    results["gradients"] = max(
        _largest(exported[name] - value) / _largest(value)
        for name, value in expected.items()
        if value.size and _largest(value) > 1e-6
    )
    after = codebook["embed"] - golden["train/codebook_embed_after"][0]
    return results | {"codebook_after_a_step": _largest(after)}


def full_size_latents(batch_sizes: tuple[int, ...] = (1, 2, 4)) -> dict[str, float]:
    """Largest differences of the unit latents of random features: from a projection in float64, in
    batches of every size, and of one volume between batches."""
    model, rng = CTCLIP(CTCLIPConfig()), np.random.default_rng(0)
    channels, dim = model.config.image.features, model.config.dim_latent
    kernel = rng.uniform(-1, 1, (channels, dim)).astype(np.float32) / np.sqrt(channels)
    features = rng.normal(size=(max(batch_sizes), channels)).astype(np.float32)
    blocks = (slice(start, start + 4096) for start in range(0, channels, 4096))
    exact = sum(features[:, rows].astype(np.float64) @ kernel[rows] for rows in blocks)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    variables = {"params": {"image_projection": {"kernel": jnp.asarray(kernel)}}}
    project = jax.jit(model.project_image)
    latents = [np.asarray(project(variables, features[:size])) for size in batch_sizes]
    return {
        "image_latents_full_size": max(_largest(part - exact[: len(part)]) for part in latents),
        "image_latents_between_batches": max(_largest(part[0] - latents[0][0]) for part in latents),
    }


def _largest(difference) -> float:
    return float(np.abs(np.asarray(difference)).max())


def main() -> None:
    measure.save("exactness", {"differences": differences() | full_size_latents()})


if __name__ == "__main__":
    command_line.run(main)
