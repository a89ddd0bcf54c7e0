"""What the text warm-up teaches, before any image: docs/recipes.md.

    python -m benchmarks.text_warmup --shards=runs/demo/shards --valid=runs/ablation/shards

The text tower alone reads the reports of volumes that it has not seen, sentence by sentence, and
prompts for each label. The mean AUROC of the labels by the similarity of report and prompts is what
the tower knows of findings and of their absence.
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path

import numpy as np
from absl import flags
from sklearn.metrics import roc_auc_score

from benchmarks import measure
from configs import phantoms
from ctclip_jax.common.configs import from_dict
from ctclip_jax.evaluation.encode import encode_reports, texts_of
from ctclip_jax.inference import load
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.preemption import Preemption
from ctclip_jax.training.run import build
from ctclip_jax.training.start import initial_variables
from data_pipelines import shards
from data_pipelines.errors import run_main
from data_pipelines.reports import LABELS, PROMPTS, prompt_text

OBJECTIVES = ("none", "matched_sentences")
DOCS = Path(__file__).parents[1] / "docs" / "recipes.md"

SHARDS = flags.DEFINE_string("shards", "runs/demo/shards", "Prepared phantoms to train on.")
VALID = flags.DEFINE_string("valid", "runs/ablation/shards", "Prepared phantoms to read.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each objective, none or matched_sentences.")


def auroc(objective: str, seed: int) -> float:
    """Returns the mean AUROC over labels after the warm-up; objective 'none': of a new tower."""
    config = phantoms.get_config()
    config.update(seed=seed)
    config.data.shards = SHARDS.value
    config.evaluation.every = 0
    if objective == "none":
        config.text_warmup.steps = 0
    config = from_dict(TrainConfig, config.to_dict())
    with tempfile.TemporaryDirectory() as folder, Preemption() as preemption:
        run = build(config, Path(folder))
        variables = initial_variables(run, preemption)
    model = load.Model(
        config.model, variables, tokenizer=run.tokenizer, max_length=config.data.max_length
    )
    return read_labels(model)


def read_labels(model: load.Model) -> float:
    """Returns the mean AUROC of labels by the prompts that a report is like."""
    rows = shards.read_reports(VALID.value, "valid")
    texts = [texts_of(row, report="joined", pool_sentences=True) for row in rows]
    known = np.array([bool(each) for each in texts])
    labels = np.array([row["labels"] for row in rows])[known]
    reports = encode_reports(texts, encode_texts=model.encode_text)[known]
    prompts = [prompt_text(prompt, label) for label in LABELS for prompt in PROMPTS]
    present, absent = model.encode_text(prompts).reshape(len(LABELS), 2, -1).swapaxes(0, 1)
    scores = reports @ (present - absent).T
    return float(np.mean([roc_auc_score(labels[:, i], scores[:, i]) for i in range(len(LABELS))]))


def main() -> None:
    found = {
        objective: [round(auroc(objective, seed), 4) for seed in range(SEEDS.value)]
        for objective in OBJECTIVES
    }
    warmup = dataclasses.asdict(from_dict(TrainConfig, phantoms.get_config().to_dict()).text_warmup)
    results = {
        objective: {"auroc": round(statistics.mean(each), 4), "auroc_by_seed": each}
        for objective, each in found.items()
    }
    measure.save("text_warmup", {"warmup": warmup, "objectives": results})
    write_docs(results)


def write_docs(results: dict[str, dict]) -> None:
    """Writes the table."""
    rows = [
        (
            f"`{name}`",
            f"{row['auroc']:.3f}",
            ", ".join(f"{each:.3f}" for each in row["auroc_by_seed"]),
        )
        for name, row in results.items()
    ]
    measure.write_table(DOCS, "objective | mean AUROC of labels read in reports | by seed", rows)


if __name__ == "__main__":
    run_main(main)
