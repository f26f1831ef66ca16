"""`polydecode check`: what must hold of a plugin whatever the batch, tried on its own code."""
