"""Converts published PyTorch weights to an export, and back.

    python -m ctclip_jax.convert --source=CT-CLIP_v2.pt --out=EXPORT
    python -m ctclip_jax.convert --source=EXPORT --out=weights.safetensors

An export of imported weights has two more files: unused.safetensors, tensors that the model never
uses, with which the way back restores the file bit for bit; and provenance.json.
"""

from absl import flags

from data_pipelines import command_line


def define_flags() -> None:
    flags.DEFINE_string("source", None, "A .safetensors or .pt file, or an export.", required=True)
    flags.DEFINE_string("out", None, "An export, or a .safetensors or .pt file.", required=True)
    flags.DEFINE_list("image_size", [], "Voxels of a slice: height,width.")
    flags.DEFINE_list("patch_size", [], "Voxels of a patch: height,width.")
    flags.DEFINE_integer("temporal_patch_size", None, "Slices of a patch.", lower_bound=1)
    flags.DEFINE_integer("frames", None, "Slices of a volume.", lower_bound=1)
    flags.DEFINE_integer("text_heads", None, "Attention heads of the text tower.", lower_bound=1)
    flags.DEFINE_list("spacing", [], "Millimeters between voxels: z,x,y.")
    flags.DEFINE_string("tokenizer", "", "vocab.txt or a SentencePiece .model, for the export.")
    flags.DEFINE_bool("label_informed", False, "The weights were trained with labels (VocabFine).")


command_line.parse(__name__, define_flags)

import dataclasses
import json
import math
import time
from pathlib import Path

from ctclip_jax.checkpoints.exports import is_label_informed, load_export, save_export
from ctclip_jax.checkpoints.tensor_files import read_tensors, write_tensors
from ctclip_jax.checkpoints.torch_convert import export_weights, import_weights
from ctclip_jax.checkpoints.torch_geometry import Geometry
from ctclip_jax.common.configs import from_dict
from ctclip_jax.models.ct_clip import CTCLIPConfig
from data_pipelines.errors import InputError
from data_pipelines.files import renewing_checksums, sha256
from data_pipelines.tokenizers import load_tokenizer

UNUSED_FILE = "unused.safetensors"
PROVENANCE_FILE = "provenance.json"


def to_export(
    source: Path,
    out: Path,
    *,
    geometry: Geometry | None = None,
    tokenizer: Path | None = None,
    label_informed: bool = False,
) -> None:
    """Converts a .safetensors or PyTorch file with the published names to the export `out`.

    `geometry` has what its shapes do not determine; `label_informed` marks weights that were
    trained with labels, for a file that cannot say so.
    """
    if tokenizer is not None:
        load_tokenizer(tokenizer)
    imported = import_weights(read_tensors(source), source=source.name, geometry=geometry)
    config = {
        "model": dataclasses.asdict(imported.config),
        "max_length": imported.config.text.max_positions,
        "report_format": "published_inference",
        "pool_sentences": False,
        "label_informed": label_informed or is_label_informed(source),
    }
    save_export(out, imported.variables, config=config, tokenizer=tokenizer)
    provenance = imported.provenance | {"sha256": sha256(source)}
    with renewing_checksums(out, UNUSED_FILE, PROVENANCE_FILE):
        write_tensors(out / UNUSED_FILE, imported.unused)
        (out / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n")


def to_torch(source: Path, out: Path) -> None:
    """Converts the export `source` to a file of tensors with the published names, and a SHA256SUMS
    beside it."""
    variables, export = load_export(source)
    config = from_dict(CTCLIPConfig, export["model"], name=f"{source}: model")
    unused = read_tensors(source / UNUSED_FILE) if (source / UNUSED_FILE).exists() else None
    weights = export_weights(variables, config=config, unused=unused)
    with renewing_checksums(out.parent, out.name):
        write_tensors(out, weights, label_informed=export.get("label_informed", False))


def main() -> None:
    values = flags.FLAGS
    source, out = Path(values.source), Path(values.out)
    if out.exists():
        raise InputError(f"{out}: exists already")
    start = time.perf_counter()
    if source.is_dir():
        to_torch(source, out)
    else:
        geometry = Geometry(
            image_size=_positive("image_size", int, "height,width", count=2),
            patch_size=_positive("patch_size", int, "height,width", count=2),
            temporal_patch_size=values.temporal_patch_size,
            frames=values.frames,
            text_heads=values.text_heads,
            spacing=_positive("spacing", float, "z,x,y", count=3),
        )
        tokenizer = Path(values.tokenizer) if values.tokenizer else None
        to_export(
            source,
            out,
            geometry=geometry,
            tokenizer=tokenizer,
            label_informed=values.label_informed,
        )
    print(f"{source} -> {out} in {time.perf_counter() - start:.1f} s")


def _positive(name: str, number: type, form: str, *, count: int) -> tuple | None:
    """The numbers of a list flag, one standing for `count` equal ones; None without the flag."""
    texts = flags.FLAGS[name].value
    try:
        numbers = tuple(map(number, texts))
    except ValueError:
        numbers = (0,)
    if texts and (len(texts) not in (1, count) or not all(0 < n < math.inf for n in numbers)):
        raise InputError(f"--{name}: got {','.join(texts)}, expected {form} or one number")
    return numbers * (count // len(numbers)) if numbers else None


if __name__ == "__main__":
    command_line.run(main)
