"""What fused decoder layers of the Llama family have in common on every kind of machine."""
