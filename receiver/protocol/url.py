"""Registered URLs: the path that identifies an endpoint."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes, urlsplit


def callback_path(url: str) -> bytes:
    """The path of `url`, percent-decoded, so that it is the same however it was encoded; ``/`` if it has none.

    `url` is absolute or begins with the path. Raises ValueError where it is no URL.
    """
    return unquote_to_bytes(urlsplit(url).path) or b"/"
