"""Synthetic chest CTs with reports: analytic anatomy, 18 abnormalities, CT-RATE's file layout.

`write_tree` writes a data set; the rest of the package draws one chest (`anatomy`), adds the
radiological sign of each abnormality (`abnormalities`) and puts it into words (`wording`).
"""

from data_pipelines.sources.phantoms.dataset import write_tree

__all__ = ["write_tree"]
