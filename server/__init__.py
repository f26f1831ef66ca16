"""The HTTP front end: asyncio, wire types and text. It never imports torch."""
