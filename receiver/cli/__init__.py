"""The command line. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import io
import signal
import sys
from importlib.metadata import version
from typing import Any

import click
from sqlalchemy.exc import SQLAlchemyError

from receiver.cli.data import copy_database, quarantine, recover
from receiver.cli.deleting import delete_job, prune
from receiver.cli.doctor import doctor
from receiver.cli.history import history
from receiver.cli.options import config_option
from receiver.cli.platform import reconcile, register
from receiver.cli.report import show_report
from receiver.cli.sending import send, simulate
from receiver.cli.serving import init, migrate, serve, show_config
from receiver.cli.status import status
from receiver.database.commits import NotReplicatedError
from receiver.database.errors import RefusedError, problem_of, remedy_of
from receiver.database.history import UnknownJobError
from receiver.database.migration import SchemaError
from receiver.journal.journal import JournalError
from receiver.platform.client import PlatformError
from receiver.server.sockets import ListenError
from receiver.settings.load import SettingsError
from receiver.text import printable
from receiver.tools.sender import SendError

_INTERRUPTED = 128 + signal.SIGINT  # as a shell shows a process that a signal ended
_KNOWN_ERRORS = (
    JournalError,
    ListenError,
    NotReplicatedError,
    PlatformError,
    SchemaError,
    SendError,
    SettingsError,
    UnknownJobError,
)


class _Group(click.Group):
    """Says what is wrong in one line, without a traceback, and with nothing in it that controls a terminal."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 (click's signature)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a locale may know no Chinese; in JSON these are escapes
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # of receiver/__main__.py
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(_INTERRUPTED) from None
        except _KNOWN_ERRORS as error:
            raise click.ClickException(printable(error)) from error
        except RefusedError as error:
            remedy = "remove what its owner added to the table that does so"
            raise click.ClickException(printable(f"database_url: refuses a row ({error}): {remedy}")) from error
        except SQLAlchemyError as error:
            problem = f"database_url: {problem_of(error)}: {remedy_of(error)}"
            raise click.ClickException(printable(problem)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@config_option
@click.version_option(version("metastudio-callback-receiver"), prog_name="receiver")
def main() -> None:
    """Receive Huawei Cloud MetaStudio's live event callbacks, and keep them in a SQL database.

    Begin with `receiver init` and `receiver serve`, then try `receiver simulate` in a second terminal.
    """


for _command in (
    copy_database,
    delete_job,
    doctor,
    history,
    init,
    migrate,
    prune,
    quarantine,
    reconcile,
    recover,
    register,
    send,
    serve,
    show_config,
    show_report,
    simulate,
    status,
):
    main.add_command(_command)
