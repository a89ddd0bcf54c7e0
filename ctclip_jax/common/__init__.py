"""Below everything: trees, typed shapes, the mesh and its rules, configuration."""
