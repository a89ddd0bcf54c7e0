"""Shared basics: trees, typed shapes, mesh and sharding rules, configs, version."""
