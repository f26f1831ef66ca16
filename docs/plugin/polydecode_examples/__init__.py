"""Plugins for polydecode, one a file."""
