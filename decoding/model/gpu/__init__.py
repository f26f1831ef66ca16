"""What runs a model on a GPU faster than torch's own operations: products, and whole decoder layers."""
