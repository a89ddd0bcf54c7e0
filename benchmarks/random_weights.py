"""Random full-size weights in the published layout, and a vocabulary that has the prompts."""

from pathlib import Path

import numpy as np

from ctclip_jax.checkpoints.tensor_files import write_tensors
from ctclip_jax.checkpoints.torch_convert import published_shapes
from ctclip_jax.checkpoints.torch_names import count_layers, used_keys
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from data_pipelines.reports import LABELS, PROMPTS

VOCABULARY = 30522  # entries of the published tokenizer


def write(paths: list[Path], *, seed: int = 0) -> int:
    """Writes one random state dict to all paths; returns its number of parameters."""
    config = CTCLIPConfig()
    shapes = published_shapes(CTCLIP(config).abstract_variables(), config=config)
    slots = used_keys(count_layers(shapes), classifier=False)
    rng = np.random.default_rng(seed)
    state = {}
    for key, shape in shapes.items():
        numbers = rng.standard_normal(shape, np.float32) * np.float32(0.05)
        is_scale = key in slots and slots[key].path.endswith("scale")
        state[key] = np.zeros_like(numbers) if key.endswith(".beta") else numbers + is_scale
    for path in paths:
        write_tensors(path, state)
    return sum(value.size for value in state.values())


def write_vocabulary(path: Path) -> None:
    """Writes a WordPiece vocabulary of the published size with the words of the prompts."""
    prompts = " ".join((*LABELS, *PROMPTS)).lower().replace("{}", "")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *dict.fromkeys(prompts.replace(".", " . ").split()),
    ]
    unused = [f"[unused{i}]" for i in range(VOCABULARY - len(words))]
    path.write_text("\n".join(words + unused) + "\n")
