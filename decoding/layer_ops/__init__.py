"""What a decoder layer does between its products and its attention, on a GPU in one launch each."""
