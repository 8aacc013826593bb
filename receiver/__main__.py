"""The command `receiver`, which is `python -m receiver` too."""

from __future__ import annotations

import signal


def run() -> None:
    """Run the command line. Until a command begins, Ctrl-C ends the process at once: there is nothing to tidy up."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from receiver.cli import main  # noqa: PLC0415 (takes up to a second)

    main()


if __name__ == "__main__":
    run()
