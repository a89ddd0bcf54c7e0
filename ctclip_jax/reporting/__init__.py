"""Reports of an evaluation: self-contained HTML pages and LaTeX tables."""
