"""Published PyTorch weights to an export directory of this library, and back.

    python -m ctclip_jax.convert --source=CT-CLIP_v2.pt --out=EXPORT
    python -m ctclip_jax.convert --source=EXPORT --out=weights.safetensors

The export of imported weights keeps the tensors that the model never uses in unused.safetensors,
so that the way back gives the file again, and provenance.json says where it all came from.
"""

import dataclasses
import hashlib
import json
import math
import time
from pathlib import Path

from absl import flags

from ctclip_jax.checkpoints.exports import load_export, save_export
from ctclip_jax.checkpoints.tensor_files import (
    ENDINGS,
    read_tensors,
    says_label_informed,
    write_tensors,
)
from ctclip_jax.checkpoints.torch_convert import import_weights
from ctclip_jax.checkpoints.torch_export import export_weights
from ctclip_jax.checkpoints.torch_geometry import Geometry
from ctclip_jax.common.configs import from_dict
from ctclip_jax.models.ct_clip import CTCLIPConfig
from data_pipelines.errors import InputError, run_main
from data_pipelines.tokenizers import load_tokenizer

FLAGS = flags.FLAGS
UNUSED = "unused.safetensors"
PROVENANCE = "provenance.json"


def to_export(
    source: Path,
    out: Path,
    *,
    geometry: Geometry | None = None,
    tokenizer: Path | None = None,
    label_informed: bool = False,
) -> None:
    """Writes the export directory `out` of a .safetensors or PyTorch file as published.

    `geometry` is what its shapes do not tell, `label_informed` what a file may not say of itself.
    Raises InputError if the file does not fit.
    """
    if tokenizer is not None:
        load_tokenizer(tokenizer)
    imported = import_weights(read_tensors(source), source=source.name, geometry=geometry)
    config = {
        "model": dataclasses.asdict(imported.config),
        "max_length": imported.config.text.max_positions,
        "report": "published_inference",
        "pool_sentences": False,
        "label_informed": label_informed
        or imported.config.num_labels > 0
        or says_label_informed(source),
    }
    save_export(out, imported.variables, config=config, tokenizer=tokenizer)
    write_tensors(out / UNUSED, imported.unused)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    provenance = imported.provenance | {"sha256": digest}
    (out / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")


def to_torch(source: Path, out: Path) -> None:
    """Writes the export directory `source` as a state dict with the published names."""
    variables, export = load_export(source)
    config = from_dict(CTCLIPConfig, export["model"], name=f"{source}: model")
    unused = read_tensors(source / UNUSED) if (source / UNUSED).exists() else None
    weights = export_weights(variables, config=config, unused=unused)
    write_tensors(out, weights, label_informed=export.get("label_informed", False))


def main() -> None:
    source, out = Path(FLAGS.source), Path(FLAGS.out)
    if out.exists():
        raise InputError(f"{out}: exists already")
    start = time.perf_counter()
    if source.is_dir():
        if out.suffix not in ENDINGS:
            raise InputError(f"{out}: weights end with {', '.join(ENDINGS)}")
        to_torch(source, out)
    else:
        geometry = Geometry(
            image_size=_square_or_pair("image_size"),
            patch_size=_square_or_pair("patch_size"),
            temporal_patch_size=FLAGS.temporal_patch_size,
            frames=FLAGS.frames,
            text_heads=FLAGS.text_heads,
            spacing=_spacing(),
        )
        tokenizer = Path(FLAGS.tokenizer) if FLAGS.tokenizer else None
        to_export(
            source,
            out,
            geometry=geometry,
            tokenizer=tokenizer,
            label_informed=FLAGS.label_informed,
        )
    print(f"{source} -> {out} in {time.perf_counter() - start:.1f} s")


def _square_or_pair(name: str) -> tuple[int, int] | None:
    text = FLAGS[name].value
    if not text:
        return None
    if not all(size.isdecimal() for size in text) or len(text) > 2:
        raise InputError(f"--{name}={','.join(text)}: expected one number or height,width")
    return (int(text[0]), int(text[-1]))


def _spacing() -> tuple[float, float, float] | None:
    try:
        numbers = tuple(map(float, FLAGS.spacing))
    except ValueError:
        numbers = (0.0,)
    if numbers and not (len(numbers) == 3 and all(0 < each < math.inf for each in numbers)):
        raise InputError(f"--spacing: three numbers z,x,y, not {','.join(FLAGS.spacing)}")
    return numbers or None


if __name__ == "__main__":
    flags.DEFINE_string("source", None, "A .safetensors or .pt file, or an export directory.")
    flags.DEFINE_string("out", None, "An export directory, or a .safetensors or .pt file.")
    flags.DEFINE_list("image_size", [], "Voxels: height,width.")
    flags.DEFINE_list("patch_size", [], "Voxels: height,width.")
    flags.DEFINE_integer("temporal_patch_size", None, "Voxels along z.", lower_bound=1)
    flags.DEFINE_integer("frames", None, "Voxels along z.", lower_bound=1)
    flags.DEFINE_integer("text_heads", None, "Attention heads of the text tower.", lower_bound=1)
    flags.DEFINE_list("spacing", [], "Millimeters of a voxel: z,x,y.")
    flags.DEFINE_string("tokenizer", "", "A vocab.txt or SentencePiece model to keep with it.")
    flags.DEFINE_bool("label_informed", False, "The weights have read labels (VocabFine).")
    flags.mark_flags_as_required(["source", "out"])
    run_main(main)
