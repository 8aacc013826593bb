"""The HTTP server under both listeners: uvicorn with connection limits, deadlines, and TLS certificate reload."""
