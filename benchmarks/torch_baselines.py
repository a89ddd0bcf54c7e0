"""The two PyTorch models of benchmarks.torch_ct_vit: encoding, and training steps of Adam."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

from benchmarks import torch_ct_vit
from ctclip_jax.common.shapes import Variables
from ctclip_jax.models.ct_clip import CTCLIPConfig
from ctclip_jax.training.config import TrainConfig


@dataclasses.dataclass
class TorchBaseline:
    """A PyTorch model with its device, precision and optimizer."""

    config: CTCLIPConfig
    model: torch_ct_vit.CTCLIP
    device: str
    half: bool
    compiled: bool
    optimizer: torch.optim.Optimizer
    clip_norm: float

    def __post_init__(self):
        wrap = torch.compile if self.compiled else lambda function: function
        self._encode, self._loss = wrap(self.model.encode_image), wrap(self.model)

    def encode(self, volume: np.ndarray) -> np.ndarray:
        """Latents of int16 volumes."""
        self.model.eval()
        with torch.no_grad(), self.autocast():
            return self._encode(torch.from_numpy(volume).to(self.device)).cpu().numpy()

    def step(self, batch: dict[str, np.ndarray]) -> float:
        """One training step; returns the loss."""
        self.model.train()
        arrays = (torch.from_numpy(batch[n]) for n in ("image", "input_ids", "attention_mask"))
        with self.autocast():
            loss = self._loss(*(array.to(self.device) for array in arrays))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        return loss.item()

    def timed(self, run: Callable, x: Tensor | None, *, gradient: bool) -> Callable[[], Any]:
        """A call of `run(x)`, with `gradient` also backward, that waits for the device."""
        x = None if x is None else x.requires_grad_(gradient)

        def call():
            with torch.set_grad_enabled(gradient), self.autocast():
                output = run(x)
                if gradient:
                    output.float().square().sum().backward()
            if self.device == "cuda":
                torch.cuda.synchronize()

        return call

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.half)


def torch_baselines(
    config: TrainConfig, variables: Variables, *, compiled: bool
) -> dict[str, TorchBaseline]:
    """Both models with our weights; empty if PyTorch has no build for JAX's device."""
    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        return {}
    baselines = {}
    for best in (False, True):
        model = torch_ct_vit.CTCLIP(config.model, best=best)
        torch_ct_vit.copy_weights(model, variables)
        model.to(device)
        optim = config.optim
        baselines["pytorch, its best" if best else "pytorch, as published"] = TorchBaseline(
            config=config.model,
            model=model,
            device=device,
            half=best and config.model.dtype == "bfloat16",
            compiled=best and compiled,
            optimizer=torch.optim.Adam(
                model.parameters(), optim.learning_rate, (optim.b1, optim.b2), optim.eps, fused=best
            ),
            clip_norm=optim.clip_norm,
        )
    return baselines
