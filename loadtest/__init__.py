"""Measures OpenAI-compatible servers: scenarios, an async client, one run, interleaved comparisons, tables."""
