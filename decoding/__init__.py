"""The decode engine: tensors and token ids. It knows nothing of HTTP, asyncio or text."""
