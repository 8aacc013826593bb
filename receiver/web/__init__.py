"""The ASGI applications: callbacks on the public listener, metrics and health on the operations listener."""
