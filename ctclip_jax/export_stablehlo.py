"""Both encoders as programs that run without this library (jax.export, StableHLO).

    python -m ctclip_jax.export_stablehlo --model=EXPORT --out=DIR

DIR/serving.json              what to feed them and what comes out: begin here
DIR/encode_image.exported     (weights, volumes) -> unit latents, on CPU, CUDA or TPU, of any batch
DIR/encode_text.exported      (weights, input_ids, attention_mask) -> unit latents
DIR/weights.safetensors       the weights, by the names that the programs take
DIR/detection.safetensors     a kernel and a bias: latents -> logits of the 18 labels
DIR/TOKENIZER                 vocab.txt or a SentencePiece .model

docs/serving_example.py runs them with jax, numpy and safetensors alone. DIR is there whole or not
at all.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from jax import export

from ctclip_jax import Model, load
from ctclip_jax.checkpoints.tensor_files import write_tensors
from ctclip_jax.common.shapes import Array, Variables
from ctclip_jax.common.trees import flatten, unflatten
from ctclip_jax.evaluation.files import write_json
from ctclip_jax.inference.classifiers import Classifier
from ctclip_jax.models.ct_clip import CTCLIP
from data_pipelines.errors import InputError, run_main
from data_pipelines.files import make_folder, publish_folder, scratch_folder, sha256

PLATFORMS = ("cpu", "cuda", "tpu")
IMAGE, TEXT = "encode_image.exported", "encode_text.exported"
WEIGHTS, DETECTION, TOLD = "weights.safetensors", "detection.safetensors", "serving.json"
Weights = dict[str, Array]


def export_encoders(model: Model, platforms: Sequence[str]) -> dict[str, export.Exported]:
    """The programs by the names of their files; batch sizes, and the length of texts, are free."""
    config = model.config
    clip, weights = CTCLIP(config), _abstract(flatten(model.variables))
    make = _exporter(weights, platforms)
    (b,) = export.symbolic_shape("b")
    volumes = jax.ShapeDtypeStruct((b, *model.geometry.shape), jnp.int16)
    programs = {IMAGE: make(clip.encode_image, volumes)}
    if "text_projection" in model.variables["params"]:
        length = f"l <= {config.text.max_positions}"
        tokens = jax.ShapeDtypeStruct(
            export.symbolic_shape("b, l", constraints=[length]), jnp.int32
        )
        programs[TEXT] = make(clip.encode_text, tokens, tokens)
    return programs


def write(model: Model, out: Path, *, platforms: Sequence[str]) -> None:
    """Writes DIR.

    Raises:
      InputError: DIR exists, it cannot be written, or a prompt cannot be encoded.
    """
    if out.exists():
        raise InputError(f"{out}: exists already")
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise InputError(f"--platforms: {unknown[0]!r} is none of {', '.join(PLATFORMS)}")
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
            arrays = {"kernel": classifier.kernel, "bias": classifier.bias}
            arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
            write_tensors(scratch / DETECTION, arrays)
        if tokenizer:
            shutil.copyfile(tokenizer, scratch / tokenizer.name)
        files = {path.name: sha256(path) for path in sorted(scratch.iterdir())}
        described = describe(model, programs, classifier, tokenizer)
        write_json(scratch / TOLD, {**described, "sha256": files})
        publish_folder(scratch, out)


def describe(
    model: Model,
    programs: dict[str, export.Exported],
    classifier: Classifier | None,
    tokenizer: Path | None,
) -> dict[str, Any]:
    """serving.json but for the digests."""
    geometry, image = model.geometry, programs[IMAGE]
    told = {
        "jax": jax.__version__,
        "platforms": list(image.platforms),
        "calling_convention_version": image.calling_convention_version,
        "weights": f"{WEIGHTS}: a dict of arrays by name, the first argument of every program",
        "encode_image": {
            "volumes": {
                "dtype": "int16",
                "shape": ["b", *geometry.shape],
                "unit": "1/16 HU: round(16 * HU), HU clipped to the window first",
                "window_hu": list(geometry.window),
                "axes": ["toward Superior", "toward Left", "toward Posterior"],
                "spacing_mm": list(geometry.spacing),
                "grid": "resampled linearly to the spacing, the center cropped or padded with the"
                " lower end of the window to the shape; `ctclip_jax.load(...).prepare(scan)` or"
                " data_pipelines.resample.preprocess_fixed_point make it of a scan",
            },
            "returns": {"dtype": "float32", "shape": ["b", model.config.dim_latent]},
        },
    }
    if TEXT in programs:
        told["encode_text"] = {
            "input_ids": {"dtype": "int32", "shape": ["b", "l"]},
            "attention_mask": {"dtype": "int32", "shape": ["b", "l"], "is": "1 token, 0 padding"},
            "longest": model.max_length,
            "returns": {"dtype": "float32", "shape": ["b", model.config.dim_latent]},
            "report_form": model.report,
            "reports_by_sentences": model.pool_sentences,
            "temperature": model.temperature,
            "similarity": "temperature * latent of the volume . latent of the text",
        }
    if tokenizer:
        told["tokenizer"] = {
            "file": tokenizer.name,
            "kind": "lower-case BERT WordPiece" if tokenizer.suffix == ".txt" else "SentencePiece",
            "text": "[CLS] tokens [SEP], then padding; cut to `longest` with [SEP] kept",
            "ids": {
                "[CLS]": model.tokenizer.cls_id,
                "[SEP]": model.tokenizer.sep_id,
                "[PAD]": model.tokenizer.pad_id,
            },
        }
    if classifier:
        of = "max(latents, 0)" if classifier.relu else "latents"
        told["detection"] = {
            "labels": list(classifier.names),
            "probabilities": f"sigmoid({of} @ kernel + bias), of {DETECTION}",
            "relu": classifier.relu,
            "label_informed": model.label_informed,
        }
    return told


def _exporter(weights: Weights, platforms: Sequence[str]) -> Callable[..., export.Exported]:
    def make(encode: Callable, *inputs: jax.ShapeDtypeStruct) -> export.Exported:
        def program(weights: Weights, *inputs: Array) -> Array:
            return encode(_variables(weights), *inputs)

        return export.export(jax.jit(program), platforms=platforms)(weights, *inputs)

    return make


def _variables(weights: Weights) -> Variables:
    return {"codebook": {}, **unflatten(weights)}


def _abstract(weights: Weights) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}


def define_flags() -> None:
    """Only the binary has flags, so that importing this module adds none."""
    flags.DEFINE_string("model", None, "Any path that ctclip_jax.load opens.", required=True)
    flags.DEFINE_string("tokenizer", None, "Its vocab.txt or *.model, if not in the export.")
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_list("platforms", list(PLATFORMS), "What the programs run on.")


def main() -> None:
    """Exports what the flags say."""
    values = flags.FLAGS
    out = Path(values.out)
    if out.exists():
        raise InputError(f"{out}: exists already")
    model = load(values.model, tokenizer=values.tokenizer)
    write(model, out, platforms=values.platforms)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 2**20:.1f} MiB for {', '.join(values.platforms)}; see {out / TOLD}")


if __name__ == "__main__":
    run_main(main, define_flags)
