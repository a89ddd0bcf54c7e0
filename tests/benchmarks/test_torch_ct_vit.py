"""What the benchmarks measure ours against computes the same."""

import jax
import numpy as np
import pytest

from ctclip_jax.common.trees import flatten
from ctclip_jax.training.losses import LossConfig, make_loss


@pytest.mark.parametrize("best", [False, True])
def test_loss_codebook_and_gradients_are_ours(tiny, best):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_ct_vit import CTCLIP as TorchCTCLIP
    from benchmarks.torch_ct_vit import copy_weights

    model, variables, batch = tiny
    batch = batch | {"image": np.round(16_000 * batch["image"]).astype(np.int16)}

    @jax.jit
    def step(params):
        def loss(params):
            latents, statistics = model.encode(variables | {"params": params}, batch)
            outputs = model.outputs(params, latents)
            moved = model.update_codebook(variables["codebook"], statistics)
            return make_loss(LossConfig("softmax"))(outputs, batch)[0], moved

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, codebook), grads = step(variables["params"])
    theirs = TorchCTCLIP(model.config, best=best)
    copy_weights(theirs, variables)
    arguments = (torch.from_numpy(np.array(batch[name])) for name in batch)
    value = theirs(*arguments)
    value.backward()
    assert abs(value.item() - float(loss)) < 2e-6
    np.testing.assert_allclose(theirs.codebook.embed, codebook["embed"], atol=2e-6)
    kernel = flatten(grads)["image/spatial/blocks/peg/kernel"][0]
    found = theirs.image.spatial.blocks[0].peg.conv.weight.grad[:, 0].permute(1, 2, 3, 0)
    np.testing.assert_allclose(found, kernel, rtol=0, atol=1e-4 * np.abs(kernel).max())
    found = theirs.image_projection.weight.grad.T
    kernel = grads["image_projection"]["kernel"]
    np.testing.assert_allclose(found, kernel, rtol=0, atol=1e-4 * np.abs(kernel).max())
