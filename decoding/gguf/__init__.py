"""GGUF files made into Hugging Face directories."""
