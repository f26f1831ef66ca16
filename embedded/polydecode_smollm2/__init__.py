"""SmolLM2-135M-Instruct in Q4_1, a GGUF file. polydecode finds it by the package's list of files."""
