"""The two PyTorch models of benchmarks.torch_ct_vit: encoding, and training steps of Adam."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

from benchmarks import torch_ct_vit
from benchmarks.speed import NUM_WARM_UPS, Runs
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
    reads_patches: bool
    optimizer: torch.optim.Optimizer
    clip_norm: float

    def __post_init__(self):
        wrap = torch.compile if self.compiled else lambda function: function
        self._encode, self._loss = wrap(self.model.encode_image), wrap(self.model)

    def encode(self, image: np.ndarray | Tensor) -> np.ndarray:
        """Latents of int16 volumes, or of their patches."""
        return self._encode_on(self._put(image)).cpu().numpy()

    def encoding(self, batch: dict[str, np.ndarray], volumes: np.ndarray) -> Runs:
        """Encoding of a batch over and over; at its best it also reads patches."""
        image = self._on_host(batch["image"] if self.reads_patches else volumes)
        on_device = self._put(image)
        return Runs(
            functools.partial(self._seconds, lambda: self._encode_on(on_device)),
            functools.partial(self._seconds, lambda: self._encode_on(self._put(image)).cpu()),
        )

    def training(self, batch: dict[str, np.ndarray], volumes: np.ndarray) -> Runs:
        """Training steps on a batch over and over; at its best it also reads patches."""
        image = batch["image"] if self.reads_patches else volumes
        arrays = [image, batch["input_ids"], batch["attention_mask"]]
        on_host = [self._on_host(array) for array in arrays]
        on_device = [self._put(array) for array in on_host]
        return Runs(
            functools.partial(self._seconds, lambda: self._step_on(on_device)),
            functools.partial(self._seconds, lambda: self._step_on(map(self._put, on_host))),
        )

    def _encode_on(self, image: Tensor) -> Tensor:
        self.model.eval()
        with torch.no_grad(), self.autocast():
            return self._encode(image)

    def _step_on(self, arrays: Iterable[Tensor]) -> None:
        self.model.train()
        with self.autocast():
            loss = self._loss(*arrays)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()

    def _seconds(self, step: Callable[[], Any], num_steps: int) -> float:
        """Seconds of each of `num_steps` calls in a row, after NUM_WARM_UPS untimed ones."""
        for _ in range(NUM_WARM_UPS):
            step()
        self._wait()
        start = time.perf_counter()
        for _ in range(num_steps):
            step()
        self._wait()
        return (time.perf_counter() - start) / num_steps

    def _on_host(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.device == "cuda" else tensor

    def _put(self, array: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(array).to(self.device, non_blocking=True)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def timed(self, run: Callable, x: Tensor | None, *, gradient: bool) -> Callable[[], Any]:
        """A call of `run(x)`, with `gradient` also backward, that waits for the device."""
        if x is not None and x.is_floating_point():
            x = x.requires_grad_(gradient)

        def call():
            with torch.set_grad_enabled(gradient), self.autocast():
                output = run(x)
                if gradient:
                    output.float().square().sum().backward()
            self._wait()

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
            reads_patches=best,
            optimizer=torch.optim.Adam(
                model.parameters(), optim.learning_rate, (optim.b1, optim.b2), optim.eps, fused=best
            ),
            clip_norm=optim.clip_norm,
        )
    return baselines
