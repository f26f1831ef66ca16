"""Encoder-decoder models: transformers' weights in layers of our own, which know packed batches and pages."""
