"""The evaluation binary: zero-shot detection and retrieval of a trained model on one split.

    python -m ctclip_jax.evaluate --config=configs/phantoms.py --workdir=WORKDIR

writes into WORKDIR/evaluation/: metrics.json, scores.csv and labels.csv (VolumeName and a column
per label), latents.npz (`names`, `image`, `text`) and report.html.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import flags
from jaxtyping import Float

from ctclip_jax import config_flag
from ctclip_jax.api import Model, load
from ctclip_jax.config import EvaluationConfig, TrainConfig
from ctclip_jax.evaluators import latents, retrieval, zero_shot
from ctclip_jax.evaluators.latents import Latents
from ctclip_jax.metrics.classification import THRESHOLD_RULE
from ctclip_jax.reporting import examples, plots
from ctclip_jax.reporting.report import Example, page
from ctclip_jax.trees import unflatten
from data_pipelines import loader, shards
from data_pipelines.errors import InputError, run_main
from data_pipelines.reports import LABELS, PROMPTS, report_sentences, report_text
from data_pipelines.tokenizers import load_tokenizer
from data_pipelines.volumes import STEPS_PER_HU

EXAMPLES = 4
LABELS_PER_EXAMPLE = 6
PROGRESS_SECONDS = 5.0


def evaluate(config: TrainConfig, *, model_path: Path, out: Path) -> dict[str, Any]:
    """Encodes the split once, writes the five files into `out` and returns the metrics.

    Raises:
        InputError: shards, split or model that are missing or do not fit each other.
    """
    prompts = config.evaluation.prompts
    if prompts not in PROMPTS:
        raise InputError(f"config.evaluation.prompts: {prompts!r} is none of {', '.join(PROMPTS)}")
    folder = config.evaluation_shards
    reports = shards.read_reports(folder, config.evaluation.split)
    prepared = shards.preparation(folder, config.evaluation.split)
    if tuple(prepared["labels"]) != LABELS:
        names = ", ".join(prepared["labels"])
        raise InputError(f"{folder}: labels {names}; the 18 of CT-RATE are evaluated")
    model = load(model_path, max_length=config.evaluation.max_length)
    if (window := tuple(prepared["window"])) != model.config.image.window:
        raise InputError(
            f"{folder}: a window of {window} HU; {model_path} wants {model.config.image.window}"
        )
    encoded, scores = encode(config, model=model, reports=reports)
    if [report["volume_name"] for report in reports] != encoded.names.tolist():
        raise InputError(f"{config.evaluation_shards}: the shards and their .jsonl files differ")
    scans = np.array([scan_of(report) for report in reports])
    metrics = {
        "model": str(model_path),
        "shards": config.evaluation_shards,
        "split": config.evaluation.split,
        "volumes": len(encoded.names),
        "scans": len(np.unique(scans)),
        "prompts": prompts,
        "report": config.evaluation.report,
        "pool_sentences": config.evaluation.pool_sentences,
        "threshold_rule": THRESHOLD_RULE,
        "zero_shot": unflatten(dict(zero_shot.evaluate(scores, encoded.labels))),
        "retrieval": unflatten(dict(retrieval.evaluate(encoded, scans=scans))),
    }
    per_label = metrics["zero_shot"]["per_label"]
    thresholds = [per_label[label]["threshold"] for label in LABELS]
    shown = describe(config, encoded=encoded, scores=scores, thresholds=thresholds, reports=reports)
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    write_table(out / "scores.csv", encoded.names, scores)
    write_table(out / "labels.csv", encoded.names, encoded.labels)
    np.savez(out / "latents.npz", names=encoded.names, image=encoded.image, text=encoded.text)
    html = page(metrics, labels=encoded.labels, scores=scores, examples=shown)
    (out / "report.html").write_text(html, encoding="utf-8")
    return metrics


def encode(
    config: TrainConfig, *, model: Model, reports: Sequence[Mapping[str, Any]]
) -> tuple[Latents, Float[np.ndarray, "n labels"]]:
    """One pass of the model over the split, whose rows are `reports`: latents, zero-shot scores."""
    data, evaluation = config.data, config.evaluation
    tokenizer = model.tokenizer or load_tokenizer(data.tokenizer_path)

    def encode_texts(texts: list[str]) -> np.ndarray:
        return model.encode_text(*tokenizer(texts, model.max_length))

    text = latents.encode_reports(
        [texts_of(row, evaluation) for row in reports], encode_texts=encode_texts
    )
    batches = loader.eval_loader(
        config.evaluation_shards,
        split=evaluation.split,
        batch_size=evaluation.batch_size,
        process_index=0,
        process_count=1,
    )
    volumes = latents.encode_volumes(
        with_progress(batches, total=len(reports)),
        encode_image=lambda image: model.encode_image(image, batch_size=len(image)),
    )
    encoded = Latents(text=text, **volumes)
    scores = zero_shot.score(
        encoded.image,
        encode_prompts=encode_texts,
        prompts=PROMPTS[evaluation.prompts],
        temperature=model.temperature,
    )
    return encoded, scores


def scan_of(row: Mapping[str, Any]) -> str:
    """What the reconstructions of one scan have in common."""
    return f"{row['patient']}/{row['scan']}"


def texts_of(row: Mapping[str, Any], evaluation: EvaluationConfig) -> list[str]:
    """What is encoded of a report: all of it as one text, or its sentences."""
    choose = report_sentences if evaluation.pool_sentences else report_text
    texts = choose(row["findings"], row["impressions"], form=evaluation.report)
    return [texts] if isinstance(texts, str) else texts


def with_progress(
    batches: Iterable[Mapping[str, Any]], *, total: int
) -> Iterator[Mapping[str, Any]]:
    """The same batches, with a line on stderr: volumes done, volumes per second, time left."""
    started = shown = time.monotonic()
    done = 0
    for batch in batches:
        yield batch
        done += int(np.sum(batch["valid"]))
        now = time.monotonic()
        if now - shown >= PROGRESS_SECONDS or done == total:
            shown, rate = now, done / (now - started)
            left = round((total - done) / rate)
            print(
                f"evaluation: {done}/{total} volumes, {rate:.2f} volumes/s,"
                f" {left // 60}:{left % 60:02d} left",
                file=sys.stderr,
            )


def describe(
    config: TrainConfig,
    *,
    encoded: Latents,
    scores: Float[np.ndarray, "n labels"],
    thresholds: Sequence[float | None],
    reports: Sequence[Mapping[str, Any]],
) -> list[Example]:
    """The volumes that the report shows, read again from the shards; `reports` has all rows."""
    source = shards.read(config.evaluation_shards, config.evaluation.split)
    spacing = shards.preparation(config.evaluation_shards, config.evaluation.split)["spacing"]
    form = config.evaluation.report
    texts = [report_text(row["findings"], row["impressions"], form=form) for row in reports]
    scans = np.array([report["scan"] for report in reports])
    present = encoded.labels == 1
    shown = []
    for row in examples.choose(encoded.names, scans=scans, labels=present, count=EXAMPLES):
        nearest, rank = examples.nearest_report(encoded.image[row], encoded.text, own=row)
        volume = source[row]["volume"].astype(np.float32) / STEPS_PER_HU
        shown.append(
            Example(
                name=str(encoded.names[row]),
                picture=plots.slices(volume, spacing=tuple(spacing)),
                present=tuple(LABELS[i] for i in np.flatnonzero(present[row])),
                predicted=examples.outstanding(
                    scores[row], thresholds=thresholds, count=LABELS_PER_EXAMPLE
                ),
                report=texts[row],
                own_rank=rank,
                nearest=(str(encoded.names[nearest]), texts[nearest]),
            )
        )
    return shown


def write_table(path: Path, names: np.ndarray, values: np.ndarray) -> None:
    """A CSV of VolumeName and the 18 labels, as CT-RATE writes them."""
    pd.DataFrame(values, columns=LABELS, index=names).to_csv(path, index_label="VolumeName")


def find_model(workdir: Path, given: str | None) -> Path:
    """The model to evaluate: the one given, or what training exported into the workdir."""
    if given:
        return Path(given)
    if not (workdir / "export").is_dir():
        raise InputError(f"{workdir}: no export in it; train first or pass --model")
    return workdir / "export"


def define_flags() -> None:
    """Only the binary has flags, so that importing this module adds none."""
    config_flag.define()
    flags.DEFINE_string("workdir", None, "Folder that main.py trained into.", required=True)
    flags.DEFINE_string("model", None, "Any path that ctclip_jax.load opens; WORKDIR/export.")
    flags.DEFINE_string("out", None, "Folder to write into; WORKDIR/evaluation.")


def main(argv: Sequence[str]) -> None:
    """Evaluates what the flags say and prints the headline numbers."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    config = config_flag.read()
    workdir = Path(values.workdir)
    out = Path(values.out) if values.out else workdir / "evaluation"
    metrics = evaluate(config, model_path=find_model(workdir, values.model), out=out)
    auroc = metrics["zero_shot"]["macro"]["auroc"]
    recall = metrics["retrieval"]["report_to_volume"].get("recall@5")
    print(f"zero-shot AUROC {auroc}, report to volume recall@5 {recall}: {out / 'report.html'}")


if __name__ == "__main__":
    define_flags()
    run_main(main)
