"""The evaluation protocol and its figures."""
