"""The PyTorch model of the speed benchmarks computes the same as ours."""

import jax
import numpy as np
import pytest

from ctclip_jax.common.trees import flatten
from ctclip_jax.training.losses import LossConfig, make_loss

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def batch(tiny):
    _, _, batch = tiny
    return batch | {"image": np.round(16_000 * batch["image"]).astype(np.int16)}


@pytest.fixture(scope="module")
def our_step(tiny, batch):
    """Loss, codebook after the step, and gradients of our model."""
    model, variables, _ = tiny

    @jax.jit
    def step(params):
        def loss(params):
            latents, statistics = model.encode(variables | {"params": params}, batch)
            outputs = model.outputs(params, latents)
            codebook = model.update_codebook(variables["codebook"], statistics)
            return make_loss(LossConfig("softmax"))(outputs, batch)[0], codebook

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, codebook), grads = step(variables["params"])
    return loss, codebook, grads


@pytest.mark.parametrize("best", [False, True])
def test_loss_codebook_and_gradients_equal_ours(tiny, batch, our_step, best):
    from benchmarks.torch_ct_vit import CTCLIP as TorchCTCLIP
    from benchmarks.torch_ct_vit import copy_weights

    model, variables, _ = tiny
    loss, codebook, grads = our_step
    theirs = TorchCTCLIP(model.config, best=best)
    copy_weights(theirs, variables)
    value = theirs(*(torch.from_numpy(np.array(batch[name])) for name in batch))
    value.backward()
    assert abs(value.item() - float(loss)) < 2e-6
    np.testing.assert_allclose(theirs.codebook.embed, codebook["embed"], atol=2e-6)
    convolution = theirs.image.spatial.blocks[0].peg.conv.weight.grad[:, 0].permute(1, 2, 3, 0)
    projection = theirs.image_projection.weight.grad.T
    for actual, expected in (
        (convolution, flatten(grads)["image/spatial/blocks/peg/kernel"][0]),
        (projection, grads["image_projection"]["kernel"]),
    ):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
