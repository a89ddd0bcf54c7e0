"""Synthetic chest CTs with reports: analytic anatomy, 18 abnormalities, CT-RATE's file layout.

`write_tree` writes a data set. Inside, `anatomy` and `chest` draw a healthy chest, `abnormalities`
adds the radiological sign of each label, and `wording` puts what was drawn into a report.
"""

from data_pipelines.sources.phantoms.dataset import write_tree

__all__ = ["write_tree"]
