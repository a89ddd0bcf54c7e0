"""A CT through what `python -m ctclip_jax.export_stablehlo` wrote, without ctclip-jax.

    python serving_example.py DIR VOLUMES.npy

VOLUMES.npy are int16 (n, f, h, w) as DIR/serving.json describes them. Needs jax, flatbuffers, numpy
and safetensors; for words also tokenizers (vocab.txt) or sentencepiece (*.model).
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


def tokens(folder: Path, told: dict, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of texts, as the model reads them."""
    file, ids = folder / told["tokenizer"]["file"], told["tokenizer"]["ids"]
    if file.suffix == ".model":
        import sentencepiece

        encode = sentencepiece.SentencePieceProcessor(model_file=str(file)).encode
    else:
        from tokenizers import BertWordPieceTokenizer

        pieces = BertWordPieceTokenizer(str(file), lowercase=True)
        encode = lambda text: pieces.encode(text, add_special_tokens=False).ids  # noqa: E731
    longest = told["encode_text"]["longest"]
    rows = [[ids["[CLS]"], *encode(text)[: longest - 2], ids["[SEP]"]] for text in texts]
    length = max(map(len, rows))
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], np.int32)
    padded = [row + [ids["[PAD]"]] * (length - len(row)) for row in rows]
    return np.array(padded, np.int32), mask


def main(folder: Path, volumes: Path) -> None:
    told = json.loads((folder / "serving.json").read_text())
    weights = jax.device_put(load_file(folder / "weights.safetensors"))
    encode_image = load_program(folder / "encode_image.exported")
    encode_text = load_program(folder / "encode_text.exported")
    detection = load_file(folder / "detection.safetensors")

    image = np.asarray(encode_image(weights, np.load(volumes)))
    read = np.maximum(image, 0) if told["detection"]["relu"] else image
    logits = read @ detection["kernel"] + detection["bias"]
    probabilities = 1 / (1 + np.exp(-logits))
    text = np.asarray(encode_text(weights, *tokens(folder, told, ["Emphysema.", "No nodule."])))
    found = {
        "probabilities": dict(
            zip(told["detection"]["labels"], probabilities.T.tolist(), strict=True)
        ),
        "similarity": (told["encode_text"]["temperature"] * image @ text.T).tolist(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
