"""The devices of this process, checked before anything else could be blamed for their absence."""

import jax

from data_pipelines.errors import InputError, one_line


def check_devices() -> None:
    """Raises InputError if jax has no device: no accelerator, or a broken plugin.

    To be called before an `except Exception` that takes every error for a damaged file.
    """
    try:
        jax.devices()
    except Exception as error:  # RuntimeError, or without a plugin an AssertionError without text
        platforms = jax.config.jax_platforms or ""
        cause = one_line(error).partition(" (set JAX_PLATFORMS")[0] if str(error) else "no plugin"
        raise InputError(
            f"JAX_PLATFORMS={platforms}: no such device can be used ({cause}); JAX_PLATFORMS=cpu"
            " computes without an accelerator"
        ) from error
