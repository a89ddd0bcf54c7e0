"""Serves what `python -m ctclip_jax.export_stablehlo` wrote, without ctclip-jax.

    python serving_example.py DIR VOLUMES.npy

VOLUMES.npy is int16 (n, f, h, w), as DIR/serving.json describes it. Needs jax, flatbuffers, numpy
and safetensors; for text also tokenizers (vocab.txt) or sentencepiece (*.model).
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file


def load_program(path: Path):
    return jax.jit(export.deserialize(path.read_bytes()).call)


def tokenize(folder: Path, config: dict, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and attention mask: [CLS] tokens [SEP], padded with [PAD] to the longest text."""
    file, ids = folder / config["tokenizer"]["file"], config["tokenizer"]["ids"]
    if file.suffix == ".model":
        import sentencepiece

        encode = sentencepiece.SentencePieceProcessor(model_file=str(file)).encode
    else:
        from tokenizers import BertWordPieceTokenizer

        pieces = BertWordPieceTokenizer(str(file), lowercase=True)
        encode = lambda text: pieces.encode(text, add_special_tokens=False).ids  # noqa: E731
    max_length = config["encode_text"]["max_length"]
    rows = [[ids["[CLS]"], *encode(text)[: max_length - 2], ids["[SEP]"]] for text in texts]
    length = max(map(len, rows))
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], np.int32)
    padded = [row + [ids["[PAD]"]] * (length - len(row)) for row in rows]
    return np.array(padded, np.int32), mask


def main(folder: Path, volumes: Path) -> None:
    config = json.loads((folder / "serving.json").read_text())
    weights = jax.device_put(load_file(folder / "weights.safetensors"))
    encode_image = load_program(folder / "encode_image.exported")
    encode_text = load_program(folder / "encode_text.exported")
    classifier = load_file(folder / "detection.safetensors")

    image = np.asarray(encode_image(weights, np.load(volumes)))
    features = np.maximum(image, 0) if config["detection"]["relu"] else image
    logits = features @ classifier["kernel"] + classifier["bias"]
    probabilities = 1 / (1 + np.exp(-logits))

    tokens = tokenize(folder, config, ["Emphysema.", "No nodule."])
    text = np.asarray(encode_text(weights, *tokens))
    similarity = config["encode_text"]["temperature"] * image @ text.T

    labels = config["detection"]["labels"]
    by_label = dict(zip(labels, probabilities.T.tolist(), strict=True))
    print(json.dumps({"probabilities": by_label, "similarity": similarity.tolist()}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
