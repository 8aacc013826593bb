"""The platform's own API: where callbacks are registered, and what it did that no callback told."""
