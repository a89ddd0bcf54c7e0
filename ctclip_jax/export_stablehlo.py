"""Exports both encoders as StableHLO (jax.export), to serve them without this library.

    python -m ctclip_jax.export_stablehlo --model=EXPORT --out=DIR

DIR/serving.json              names, shapes, dtypes and SHA-256: start here (docs/inference.md)
DIR/encode_image.exported     (weights, volumes) -> unit latents, for CPU, CUDA and TPU
DIR/encode_text.exported      (weights, input_ids, attention_mask) -> unit latents
DIR/weights.safetensors       the weights by name, the first argument of both programs
DIR/detection.safetensors     kernel and bias: latents -> logits of the 18 labels
DIR/TOKENIZER                 vocab.txt or a SentencePiece .model

docs/serving_example.py runs them with jax, numpy and safetensors only.
"""

from absl import flags

from data_pipelines import command_line

PLATFORMS = ("cpu", "cuda", "tpu")


def define_flags() -> None:
    flags.DEFINE_string("model", None, "Any path that ctclip_jax.load opens.", required=True)
    flags.DEFINE_string("tokenizer", None, "vocab.txt or *.model, if the export has none.")
    flags.DEFINE_string("out", None, "Folder to write; must not exist.", required=True)
    flags.DEFINE_list("platforms", list(PLATFORMS), "What the programs run on.")


command_line.parse(__name__, define_flags)

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export

from ctclip_jax import Model, load
from ctclip_jax.checkpoints.tensor_files import write_tensors
from ctclip_jax.common.shapes import Array
from ctclip_jax.common.trees import flatten, unflatten
from ctclip_jax.evaluation.files import write_json
from ctclip_jax.inference.classifiers import Classifier
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.models.kernels.placement import use_mesh
from data_pipelines.errors import InputError
from data_pipelines.files import make_folder, publish_folder, scratch_folder, sha256
from data_pipelines.resample import STEPS_PER_HU

IMAGE, TEXT = "encode_image.exported", "encode_text.exported"
WEIGHTS, DETECTION, CONFIG = "weights.safetensors", "detection.safetensors", "serving.json"


def export_encoders(model: Model, platforms: Sequence[str]) -> dict[str, export.Exported]:
    """The programs by file name. Batch size `b` and text length `l` are symbolic."""
    clip, params = CTCLIP(model.config), model.variables["params"]
    weights = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in flatten(model.variables).items()
    }

    # The plain forms of the kernels, those of a CPU, run on every platform. The CPU is abstract:
    # JAX_PLATFORMS=cuda leaves no other.
    cpu = jax.sharding.AbstractDevice("cpu", 1, "cpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=cpu)

    def export_encoder(encode: Callable, *inputs: jax.ShapeDtypeStruct) -> export.Exported:
        # The weights are an argument: as constants they would be in each program, in each platform.
        def program(weights: dict[str, Array], *inputs: Array) -> Array:
            # Without a quantizer there is no codebook, and `unflatten` cannot know of it.
            with use_mesh(mesh):
                return encode({"codebook": {}, **unflatten(weights)}, *inputs)

        return export.export(jax.jit(program), platforms=platforms)(weights, *inputs)

    (b,) = export.symbolic_shape("b")
    volumes = jax.ShapeDtypeStruct((b, *model.geometry.shape), jnp.int16)
    programs = {IMAGE: export_encoder(clip.encode_image, volumes)}
    if "text_projection" in params:
        constraint = f"l <= {model.config.text.max_positions}"
        shape = export.symbolic_shape("b, l", constraints=[constraint])
        tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
        programs[TEXT] = export_encoder(clip.encode_text, tokens, tokens)
    return programs


def save(model: Model, out: Path, *, platforms: Sequence[str]) -> None:
    """Writes DIR, whole or not at all."""
    if out.exists():
        raise InputError(f"{out}: already exists")
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        choices = ", ".join(PLATFORMS)
        raise InputError(f"--platforms: unknown value {unknown[0]!r}; choose from {choices}")
    programs, classifier = export_encoders(model, platforms), None
    tokenizer = model.tokenizer.path if model.tokenizer and TEXT in programs else None
    if "classifier" in model.variables["params"]:
        classifier = model.trained_classifier()
    elif tokenizer:
        classifier = model.zero_shot_classifier()
    make_folder(out.absolute().parent)
    with scratch_folder(epath.Path(out.absolute().parent)) as scratch:
        for name, program in programs.items():
            (scratch / name).write_bytes(program.serialize())
        write_tensors(scratch / WEIGHTS, flatten(jax.device_get(model.variables)))
        if classifier:
            arrays = {
                "kernel": classifier.kernel.astype(np.float32),
                "bias": classifier.bias.astype(np.float32),
            }
            write_tensors(scratch / DETECTION, arrays)
        if tokenizer:
            shutil.copyfile(tokenizer, scratch / tokenizer.name)
        digests = {path.name: sha256(path) for path in sorted(scratch.iterdir())}
        config = serving_config(model, programs, classifier, has_tokenizer=bool(tokenizer))
        write_json(scratch / CONFIG, {**config, "sha256": digests})
        publish_folder(scratch, out)


def serving_config(
    model: Model,
    programs: Mapping[str, export.Exported],
    classifier: Classifier | None,
    *,
    has_tokenizer: bool,
) -> dict[str, Any]:
    """The content of serving.json, without the digests."""
    geometry, program = model.geometry, programs[IMAGE]
    latents = {"dtype": "float32", "shape": ["b", model.config.dim_latent]}
    tokens = {"dtype": "int32", "shape": ["b", "l"]}
    config = {
        "jax": jax.__version__,
        "platforms": list(program.platforms),
        "calling_convention_version": program.calling_convention_version,
        "encode_image": {
            "volumes": {
                "dtype": "int16",
                "shape": ["b", *geometry.shape],
                "steps_per_hu": STEPS_PER_HU,
                "window_hu": list(geometry.window),
                "axes": ["Superior", "Left", "Posterior"],
                "spacing_mm": list(geometry.spacing),
            },
            "returns": latents,
        },
    }
    if TEXT in programs:
        config["encode_text"] = {
            "input_ids": tokens,
            "attention_mask": tokens,
            "max_length": model.max_length,
            "returns": latents,
            "report_format": model.report_format,
            "pool_sentences": model.pool_sentences,
            "temperature": model.temperature,
        }
    if has_tokenizer:
        tokenizer = model.tokenizer
        ids = {"[CLS]": tokenizer.cls_id, "[SEP]": tokenizer.sep_id, "[PAD]": tokenizer.pad_id}
        config["tokenizer"] = {"file": tokenizer.path.name, "ids": ids}
    if classifier:
        config["detection"] = {
            "labels": list(classifier.names),
            "relu": classifier.relu,
            "label_informed": model.label_informed,
        }
    return config


def main() -> None:
    values = flags.FLAGS
    out = Path(values.out)
    save(load(values.model, tokenizer=values.tokenizer), out, platforms=values.platforms)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 2**20:.1f} MiB for {', '.join(values.platforms)}; see {out / CONFIG}")


if __name__ == "__main__":
    command_line.run(main)
