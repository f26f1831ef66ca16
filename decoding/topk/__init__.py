"""Log-softmax and the k best of rows in one reading of the scores, compiled where it can be."""
