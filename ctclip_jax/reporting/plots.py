"""Pictures of a report, as bytes: ROC curves (SVG), slices of a volume (PNG)."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float, Integer, Num
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

INK, ACCENT, MUTED = "#1d2733", "#0f6e84", "#b8c2cc"
LUNG_WINDOW = (-1000.0, 200.0)  # HU; prepared volumes are clipped at -1000
STYLE = {"font.family": "sans-serif", "font.size": 8, "svg.fonttype": "path", "svg.hashsalt": "roc"}


def roc_grid(
    labels: Integer[np.ndarray, "n labels"],
    scores: Float[np.ndarray, "n labels"],
    *,
    names: Sequence[str],
    thresholds: Sequence[float | None],
) -> bytes:
    """ROC curves of all labels as small multiples; a dot marks the threshold. Returns an SVG.

    A label without a threshold, because all volumes are of one class, gets an empty panel.
    """
    columns = 6
    rows = -(-len(names) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 2.25 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        for i, panel in enumerate(panels):
            if i >= len(names):
                panel.set_visible(False)
                continue
            _roc_panel(panel, labels[:, i], scores[:, i], thresholds[i])
            panel.set_title(names[i], color=INK, fontsize=8, loc="left")
        figure.supxlabel("False positive rate", fontsize=8, color=INK)
        figure.supylabel("True positive rate", fontsize=8, color=INK)
        return _bytes(figure, "svg", metadata={"Date": None})


def _roc_panel(panel, labels, scores, threshold) -> None:
    """Draws one curve with its area shaded."""
    panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=(0, 1), yticks=(0, 1))
    panel.tick_params(length=0, colors=INK)
    panel.spines[:].set_color(MUTED)
    panel.plot((0, 1), (0, 1), color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    if threshold is None:
        panel.text(0.96, 0.04, "one class only", ha="right", color=INK)
        return
    labels, scores = labels[labels >= 0], scores[labels >= 0]
    false_positive, true_positive, _ = roc_curve(labels, scores)
    panel.fill_between(false_positive, true_positive, color=ACCENT, alpha=0.10, linewidth=0)
    panel.plot(false_positive, true_positive, color=ACCENT, linewidth=1.4)
    predicted, positive = scores > threshold, labels.astype(bool)
    panel.plot(
        predicted[~positive].mean(), predicted[positive].mean(), "o", color=INK, markersize=3.5
    )


def slices(volume: Num[np.ndarray, "f h w"], *, spacing: tuple[float, float, float]) -> bytes:
    """Three slices of a volume in the lung window: axial, coronal, sagittal through a lung.

    Args:
      volume: HU; f toward the head, h toward Left, w toward Posterior.
      spacing: mm along f, h, w.

    Returns:
      A PNG in radiological orientation: the patient's left on the right, the head on top.
    """
    frames, height, width = volume.shape
    f, h, w = spacing
    planes = (
        (volume[frames // 2].T, w / h),
        (volume[::-1, :, width // 2], f / h),
        (volume[::-1, height * 3 // 10, :], f / w),
    )
    figure = Figure(figsize=(9, 3), facecolor="black", dpi=120)
    panels = figure.subplots(1, 3, gridspec_kw={"wspace": 0.02})
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    low, high = LUNG_WINDOW
    for panel, (plane, aspect) in zip(panels, planes, strict=True):
        panel.imshow(
            plane, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="bilinear"
        )
        panel.set_axis_off()
    return _bytes(figure, "png", metadata={"Software": None})


def _bytes(figure: Figure, form: str, *, metadata: dict[str, None]) -> bytes:
    """The figure as a file of that form, without what differs from run to run."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, metadata=metadata)
    return buffer.getvalue()
