"""Takes the README's picture of the status page: a receiver in a folder of its own, a night's livestreams, chromium.

Run as `make picture`, which writes docs/status-page.png.
"""

from __future__ import annotations

import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from tests.helpers.browser import Look, chromium, opened
from tests.helpers.livestreams import running_at_night
from tests.helpers.receiver import Process

PICTURE = Path(__file__).parents[2] / "docs/status-page.png"
_LOOK = Look(width=1200)


def picture(browser: Browser, receiver: Process) -> bytes:
    """The upper part of the page as a PNG of 256 colours."""
    with opened(browser, f"http://127.0.0.1:{receiver.operations_port}/", _LOOK) as page:
        taken = Image.open(BytesIO(page.screenshot()))
    small = BytesIO()
    taken.quantize(dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def main() -> None:
    """Write the picture."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_at_night(Path(folder)) as (receiver, _),
        chromium() as browser,
    ):
        PICTURE.write_bytes(picture(browser, receiver))


if __name__ == "__main__":
    main()
