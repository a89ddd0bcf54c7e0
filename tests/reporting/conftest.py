"""An EvalSet with untrusted text in every field, its metrics, and its report page."""

import dataclasses

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from configs import evaluation
from ctclip_jax.common.configs import from_dict
from ctclip_jax.evaluation import suite
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.reporting import examples
from ctclip_jax.reporting.report import render_report
from data_pipelines.reports import LABELS

CT_RATE = {"data_source": "ct_rate", "split": "valid"}
EVIL = '</script><script>alert(1)</script><img src="http://evil.example/x">&\u2028'


def make_eval_set(volumes=40, labels=LABELS) -> EvalSet:
    """Two volumes per scan; label 3 has one class, label 4 is partly unknown."""
    rng = np.random.default_rng(0)
    scan = np.arange(volumes) // 2
    truth = rng.integers(0, 2, (volumes, len(labels))).astype(np.int8)
    truth[:, 3] = 0
    truth[::5, 4] = -1
    latents = rng.normal(size=(2, volumes, 6))
    latents /= np.linalg.norm(latents, axis=-1, keepdims=True)
    image, text = latents[0], latents[1][scan]
    return EvalSet(
        names=np.array([f"v{i:03d}{EVIL}" for i in range(volumes)]),
        patients=np.array([f"p{s}" for s in scan]),
        scans=np.array([f"p{s}/s" for s in scan]),
        reports=np.array([f"Report {s}. {EVIL}" for s in scan]),
        label_names=tuple(labels),
        labels=truth,
        scores=np.clip((truth > 0) * 0.3 + rng.random(truth.shape) * 0.7, 0, 1),
        image=image,
        text=text,
        subgroups={
            "sex": rng.choice(["F", "M"], volumes),
            "age": np.full(volumes, "056Y"),
            "kernel": rng.choice(["B30", EVIL], volumes),
        },
        source={"model": f"runs/{EVIL}", "shards": ["a", "b"], "model_sha256": "0123456789" * 6}
        | CT_RATE,
        notes=(f"a note {EVIL}",),
    )


@pytest.fixture(scope="session", autouse=True)
def single_thread():
    """t-SNE has thousands of short parallel loops, whose threads wait for each other under load."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def protocol():
    config = from_dict(ProtocolConfig, evaluation.get_config().to_dict())
    return dataclasses.replace(config, resamples=20)


@pytest.fixture(scope="session")
def eval_set():
    return make_eval_set()


@pytest.fixture(scope="session")
def small_eval_set():
    """Five labels, for tests that draw a page of their own; the last has an untrusted name."""
    return make_eval_set(labels=(*LABELS[:4], EVIL))


def render(eval_set, evaluated, *, num_retrievals, thumbnail) -> str:
    """The report page of an evaluation, each thumbnail the same JPEG."""
    metrics, predictions = evaluated
    cases = examples.confident_cases(eval_set, predictions)
    retrievals = examples.sample_retrievals(eval_set, num_retrievals)
    return render_report(
        metrics,
        eval_set,
        predictions=predictions,
        latent_map=examples.latent_map(eval_set.image, 0),
        cases=cases,
        retrievals=retrievals,
        thumbnails=dict.fromkeys(examples.rows_with_thumbnails(cases, retrievals), thumbnail),
    )


@pytest.fixture(scope="session")
def evaluated(eval_set, protocol):
    """Metrics and predictions of `eval_set`."""
    return suite.evaluate(eval_set, protocol=protocol)
