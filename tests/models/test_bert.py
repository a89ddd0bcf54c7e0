"""The text tower against the golden tiny model."""

import jax
import numpy as np
import pytest

from ctclip_jax.models import nnx_bridge
from ctclip_jax.models.bert import Bert
from ctclip_jax.models.layers import Execution


@pytest.fixture(scope="module")
def tower(tiny):
    model, variables, _ = tiny

    def make(rngs):
        return Bert(model.config.text, rngs, Execution("float32", "none", "xla", scan=True))

    return jax.jit(nnx_bridge.bind(make, variables["params"]["text"]))


def test_last_hidden_state(tower, tiny, golden):
    batch = tiny[2]
    hidden = tower(batch["input_ids"], batch["attention_mask"])
    np.testing.assert_allclose(hidden, golden["out/bert_last_hidden_state"], rtol=0, atol=2e-5)


def test_padding_does_not_matter(tower, tiny):
    ids, mask = tiny[2]["input_ids"], tiny[2]["attention_mask"]
    length = int(mask[1].sum())
    assert length < ids.shape[1]
    other = np.where(mask == 0, 7, ids)
    np.testing.assert_allclose(
        tower(other, mask)[1, :length], tower(ids, mask)[1, :length], rtol=0, atol=1e-6
    )
