"""Configs: their location, schema, registry of classes, text, paths and migration."""
