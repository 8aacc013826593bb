"""Whether the fault tests would notice: each mutant breaks one promise in a copy of the project, and must be caught.

Run as `python -m tests.faults.mutants`, with names of mutants to try only those.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

_ROOT = Path(__file__).parents[2]


class Change(NamedTuple):
    """A text that occurs once in a file, and what takes its place."""

    file: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """The file's text with the change; it is an error if that does not say where it goes."""
        if text.count(self.old) != 1:
            raise ValueError(f"stale mutant: {self.file} holds {text.count(self.old)} times {self.old!r}")
        return text.replace(self.old, self.new.replace("{old}", self.old))


class Mutant(NamedTuple):
    """A receiver that breaks a promise, and the tests that must notice."""

    name: str
    tests: tuple[str, ...]
    changes: tuple[Change, ...]


JOURNAL = "receiver/journal/journal.py"
JOURNAL_FILE = "receiver/journal/file.py"
DAMAGED = "receiver/journal/damaged.py"
FEEDER, WORKER = "receiver/projector/feeder.py", "receiver/projector/worker.py"
RECORD, INBOX = "receiver/journal/record.py", "receiver/journal/inbox.py"
RECOVERY, STORE = "receiver/projector/recovery.py", "receiver/projector/store.py"
ENGINE = "receiver/database/engine.py"
COMMITS, INSERT = "receiver/database/commits.py", "receiver/database/insert.py"
SESSION = "receiver/database/postgresql.py"
REPLICATION, FAILOVER = "tests/faults/test_replication.py", "tests/faults/test_failover.py"
STREAMS = "receiver/database/streams.py"
KILL, POWER, DISK, FLEET = (f"tests/faults/test_{name}.py" for name in ("kill", "power", "disk", "fleet"))
LIMITER, CONNECTION, SERVER, CERTIFICATE = (
    f"receiver/server/{name}.py" for name in ("limiter", "connection", "server", "certificate")
)
STATUS_PAGE, TEMPLATES = "tests/web/status/test_page.py", "receiver/web/status/templates"
HOSTILE, RESTART = "tests/e2e/test_hostile.py", "tests/e2e/test_restart.py"
NO_CAPS = Change(
    LIMITER, "        place = self._place(connection.client_host, now)\n", "{old}        return place.of\n"
)
NO_DEADLINES = Change(
    CONNECTION,
    "        if self.state is not State.HANDSHAKE:\n            if not self.transport.get",
    "        return False\n{old}",
)

MUTANTS = (
    Mutant("no limit to connections and time", (f"{HOSTILE}::test_slow_clients",), (NO_CAPS, NO_DEADLINES)),
    Mutant(
        "no limit before the handshake", (f"{HOSTILE}::test_clients_that_never_shake_hands",), (NO_CAPS, NO_DEADLINES)
    ),
    Mutant("no deadlines", (f"{HOSTILE}::test_deadlines_are_absolute",), (NO_DEADLINES,)),
    Mutant(
        "connections that wait are lost at the end",
        ("tests/server/test_server.py",),
        (Change(SERVER, "while not self._leave_queue and self._accept():", "while False:"),),
    ),
    Mutant(
        "the socket from systemd is not used",
        (f"{RESTART}::test_restart_on_a_socket_that_stays_open",),
        (Change("receiver/app.py", "from_systemd = inherited()", "from_systemd = None"),),
    ),
    Mutant(
        "idle connections are closed at once at the end",
        (f"{RESTART}::test_a_callback_just_before_the_end",),
        (Change(SERVER, "await self._wait_for_answers(_LINGER)", "pass"),),
    ),
    Mutant(
        "a new certificate is not noticed",
        ("tests/server/test_certificate.py",),
        (Change(CERTIFICATE, "if self._state() != self._seen:", "if False:"),),
    ),
    Mutant(
        "journal not synced: synchronous=NORMAL",
        (POWER,),
        (Change(JOURNAL_FILE, "_SYNCHRONOUS = 2", "_SYNCHRONOUS = 1"),),  # it is read back against the same value
    ),
    Mutant(
        "database not synced: synchronous=NORMAL",
        (POWER,),
        (Change(ENGINE, "PRAGMA synchronous = full", "PRAGMA synchronous = normal"),),
    ),
    Mutant(
        "acknowledge before commit, power cut",
        (POWER,),
        (Change(JOURNAL, "self._waiting.append((delivery, done))", "done.set_result(None); {old}"),),
    ),
    Mutant(
        "acknowledge before commit, kill -9",
        (KILL,),
        (Change(JOURNAL, "self._waiting.append((delivery, done))", "done.set_result(None); {old}"),),
    ),
    Mutant(
        "acknowledge what the disk refused",
        (f"{DISK}::test_io_errors",),
        (
            Change(
                JOURNAL,
                "            if error is None:\n                done",
                "            if True:\n                done",
            ),
        ),
    ),
    Mutant(
        "a damaged journal is thrown away",
        (f"{DISK}::test_damaged_header",),
        (Change(DAMAGED, "    journal.rename(target)", "    journal.unlink()"),),
    ),
    Mutant(
        "the WAL of a damaged journal is thrown away",
        ("tests/projector/test_recovery.py",),
        (
            Change(
                DAMAGED,
                "wal.rename(wal_of(_new_name(journal) if wal_of(damaged).exists() else damaged))",
                "wal.unlink()",
            ),
        ),
    ),
    Mutant(
        "the WAL of a damaged journal is moved first",
        ("tests/journal/test_damage.py",),
        (
            Change(
                DAMAGED,
                "    journal.rename(target)",
                "    if wal_of(journal).exists():\n        wal_of(journal).rename(wal_of(target))\n{old}",
            ),
        ),
    ),
    Mutant(
        "a damaged journal counts as recovered after its first batch",
        ("tests/projector/test_recovery.py",),
        (
            Change(
                RECOVERY,
                "            for read, outcome in recover(path, source, suspects):\n",
                "{old}                path = path if counts['read'] else mark_recovered(path)\n",
            ),
            Change(RECOVERY, "str(mark_recovered(path))", "str(path)"),
        ),
    ),
    Mutant(
        "stored before the database confirmed, kill -9",
        (f"{KILL}::test_kill_at_any_moment",),
        (
            Change(
                FEEDER,
                "            await self._persistently(lambda: self._journal.store(batch.last_id))\n",
                "            pass\n",
            ),
            Change(
                FEEDER,
                "                await worker.send(batch.kind, batch.payload)\n",
                "                await self._journal.store(batch.last_id)\n{old}",
            ),
        ),
    ),
    Mutant(
        "reported before the database confirmed",
        (f"{KILL}::test_kill_of_the_worker",),
        (
            Change(
                WORKER,
                "            outcome = self._store.store(",
                "            self._channel.send(outcome=Outcome().to_json(), batch=True)\n{old}",
            ),
            Change(
                WORKER,
                "            self._channel.send(outcome=outcome.to_json(), batch=True)\n",
                "            outcome.to_json()\n",
            ),
            Change(
                WORKER,
                "from receiver.projector.recovery import",
                "from receiver.projector.outcome import Outcome\n{old}",
            ),
        ),
    ),
    Mutant(
        "what a worker had when it ended is not sent again",
        ("tests/projector/test_worker.py",),
        (Change(FEEDER, "        self._to_repeat.extendleft(reversed(self._on_the_way))\n", ""),),
    ),
    Mutant(
        "a worker outlives the receiver",
        ("tests/projector/test_worker.py::test_worker_ends_with_the_receiver",),
        (Change(WORKER, "    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)\n", ""),),
    ),
    Mutant(
        "a worker ends by the signal that ends the receiver",
        ("tests/projector/test_worker.py::test_signals_to_all_processes",),
        (Change(WORKER, "        signal.signal(number, signal.SIG_IGN)", "        pass"),),
    ),
    Mutant(
        "the checksum is not looked at",
        ("tests/journal/test_damage.py",),
        (
            Change(
                RECORD,
                "        is_sound = record.crc == _checksum(*record[:3], record.data)",
                "        is_sound = True",
            ),
        ),
    ),
    Mutant(
        "the checksum leaves out the id",
        ("tests/journal/test_damage.py",),
        (Change(RECORD, "_ABOUT.pack(record_id, deliveries, oldest)", "_ABOUT.pack(0, deliveries, oldest)"),),
    ),
    Mutant(
        "a damaged WAL is not noticed",
        ("tests/journal/test_damage.py::test_no_damage_goes_unseen",),
        (Change(JOURNAL_FILE, "if wal_of(path).exists() and is_damaged(", "if False and is_damaged("),),
    ),
    Mutant(
        "the file is not checked as a whole",
        ("tests/journal/test_damage.py::test_rows_that_are_gone_at_the_end",),
        (Change(JOURNAL_FILE, '        if found != "ok":', "        if False:"),),
    ),
    Mutant(
        "the last row is not noted",
        ("tests/journal/test_damage.py::test_rows_that_are_gone_at_the_end",),
        (Change(JOURNAL_FILE, "table.note_last(self._connection, self._known)", "pass"),),
    ),
    Mutant(
        "what was retried comes back into quarantine",
        ("tests/projector/test_keep.py::test_what_was_moved_out_of_quarantine_stays_out",),
        (Change(STORE, "        if kind is Kind.BATCH_KEPT:\n", "        if False:\n"),),
    ),
    Mutant(
        "a delivery that ends the worker blocks all behind it",
        ("tests/projector/test_worker.py::test_delivery_that_ends_the_worker",),
        (Change("receiver/projector/batch.py", "if deaths < MOST_DEATHS:", "if True:"),),
    ),
    Mutant(
        "a delivery of a damaged journal ends the worker again and again",
        ("tests/projector/test_suspects.py::test_deliveries_that_end_the_worker",),
        (Change(FEEDER, "        self._deaths.update(self._recovering)\n", ""),),
    ),
    Mutant(
        "what of a damaged journal was put aside is stored again",
        ("tests/projector/test_suspects.py::test_deliveries_that_end_the_worker",),
        (Change("receiver/projector/suspects.py", "return bool(self._aside) and", "return False and"),),
    ),
    Mutant(
        "what ended the worker is offered again",
        ("tests/projector/test_worker.py::test_delivery_that_ends_the_worker",),
        (Change(FEEDER, "        if self._aside:", "        if False:"),),
    ),
    Mutant(
        "what waits while workers die of something else is put aside",
        ("tests/projector/test_worker.py::test_killed_while_it_stores_nothing",),
        (Change(FEEDER, "if self._on_the_way and self._has_begun:", "if self._on_the_way:"),),
    ),
    Mutant(
        "a chunk of an old journal is removed before it is written",
        ("tests/journal/test_inbox.py",),
        (
            Change(
                INBOX,
                '        connection.execute("DELETE FROM inbox WHERE id <= ?", (last,))\n',
                '{old}        connection.execute("COMMIT")\n        connection.execute("BEGIN IMMEDIATE")\n',
            ),
        ),
    ),
    Mutant(
        "what was kept is not offered again",
        ("tests/projector/test_keep.py::test_failover_to_a_replica_that_is_behind",),
        (Change(FEEDER, "            self._kept_sent = 0\n", ""),),
    ),
    Mutant(
        "what was kept expires during an outage",
        ("tests/projector/test_keep.py::test_nothing_expires_during_an_outage",),
        (Change(FEEDER, "if self._is_up and self._kept_sent is None and", "if"),),
    ),
    Mutant(
        "what is kept costs what comes",
        ("tests/journal/test_keep.py",),
        (Change(JOURNAL_FILE, "if adds is None or not _is_full(error) or fill.first > fill.stored:", "if True:"),),
    ),
    Mutant(
        "nothing kept is offered to a standby that lagged",
        (f"{FAILOVER}::test_asynchronous_standby_that_lags",),
        (Change(FEEDER, "            self._kept_sent = 0\n", ""),),
    ),
    Mutant(
        "a repeat does not wait for the standby",
        (f"{REPLICATION}::test_commit_that_no_standby_has",),
        (Change(INSERT, "    if len(new) < len(rows):\n", "    if False:\n"),),
    ),
    Mutant(
        "a commit whose wait was canceled counts",
        (f"{REPLICATION}::test_commit_that_no_standby_has",),
        (Change(COMMITS, "        if notice.source_function == _WAIT:\n", "        if False:\n"),),
    ),
    Mutant(
        "a role may hide that a wait was canceled",
        (f"{REPLICATION}::test_commit_that_no_standby_has",),
        (Change(SESSION, "set_config('client_min_messages', 'warning', true), ", ""),),
    ),
    Mutant(
        "synchronous_commit may be off",
        (f"{REPLICATION}::test_kill_with_asynchronous_commits",),
        (Change(SESSION, "WHEN 'off' THEN 'on'", "WHEN 'off' THEN 'off'"),),
    ),
    Mutant(
        "remote_apply is lowered",
        (f"{REPLICATION}::test_level_is_not_lowered",),
        (Change(SESSION, "ELSE current_setting('synchronous_commit') END", "ELSE 'on' END"),),
    ),
    Mutant(
        "a database that is away is tried ever less often",
        ("tests/projector/test_worker.py::test_attempts_go_on",),
        (Change(WORKER, "_LONGEST_PAUSE = 2.0", "_LONGEST_PAUSE = 10.0"),),
    ),
    Mutant(
        "no unique key",
        (FLEET,),
        # ON CONFLICT has nothing to find then.
        (Change("migrations/versions/0001_events.py", '        _unique("events"),\n', ""),),
    ),
    Mutant(
        "a late event sets a stream back",
        (FLEET,),
        (
            Change(
                STREAMS,
                "        where=tuple_(new.since, place_in_second(new.state), new.received_at)\n"
                "        >= tuple_(old.since, place_in_second(old.state), old.received_at),\n",
                "",
            ),
        ),
    ),
    Mutant(
        "a state after END of the same second undoes it",
        ("tests/database/test_views.py::test_every_order_of_arrival",),
        (Change(STREAMS, "place_in_second(old.state)", "place_in_second(new.state)"),),
    ),
    Mutant(
        "the status page under any host name",
        (f"{STATUS_PAGE}::test_host",),
        (Change("receiver/web/status/hosts.py", "match = _HOST", "return True\n    {old}"),),
    ),
    Mutant(
        "the status page does not escape",
        (f"{STATUS_PAGE}::test_hostile_texts",),
        (Change("receiver/web/status/page.py", "autoescape=True", "autoescape=False"),),
    ),
    Mutant(
        "the status page shows an output's path",
        (f"{STATUS_PAGE}::test_no_secret",),
        (
            Change(
                "receiver/web/status/view.py", "    try:\n        parts = urlsplit(url", "    return url or ''\n{old}"
            ),
        ),
    ),
    Mutant(
        "the status page reads in the event loop",
        ("tests/web/status/test_outage.py",),
        (Change("receiver/web/status/reader.py", "daemon=True).start()", "daemon=True).run()"),),
    ),
    Mutant(
        "the status page asks for a picture elsewhere",
        ("tests/e2e/test_status_page.py::test_looks",),
        (
            Change(
                f"{TEMPLATES}/layout.html", '<main id="content">', '{old}<img src="https://example.com/a.png" alt="">'
            ),
        ),
    ),
    Mutant(
        "the status page is too faint in the dark",
        ("tests/e2e/test_status_page.py::test_looks",),
        (Change(f"{TEMPLATES}/status.css", "--quiet: #9dabba", "--quiet: #4d5b6a"),),
    ),
)


def _copy(folder: Path) -> None:
    """Copy what git knows or would add."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=_ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        source = _ROOT / name
        if source.is_file():  # else it was removed and not committed
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())


def _mutate(folder: Path, changes: Iterable[Change]) -> None:
    for change in changes:
        path = folder / change.file
        path.write_text(change.applied(path.read_text()))


def _failure(folder: Path, tests: Sequence[str]) -> str:
    """Which of the tests fails with the receiver in `folder`, and why; nothing if all pass."""
    environ = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    # From another folder, as the tests start it: the copy's receiver must be found, not the one that is installed.
    program = [sys.executable, "-c", "import receiver; print(receiver.__file__)"]
    found = subprocess.run(program, cwd="/", env=environ, check=True, capture_output=True, text=True).stdout.strip()
    if found != str(folder / "receiver/__init__.py"):
        sys.exit(f"the receiver that would be tested is {found}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=folder, env=environ, check=False, capture_output=True, text=True)
    # 0: all passed. 1: some failed. Anything else says nothing about the tests.
    if done.returncode not in (0, 1):
        sys.exit(f"pytest ended with {done.returncode}: {done.stdout}{done.stderr}")
    failed = [line.rpartition("::")[2] for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    return failed[0] if failed else "failed" * done.returncode


def _try(mutant: Mutant) -> bool:
    """Whether the tests do what they should, with a line about it."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name).resolve()
        _copy(folder)
        _mutate(folder, mutant.changes)
        began = time.monotonic()
        failure = _failure(folder, mutant.tests)
        seconds = time.monotonic() - began
    if mutant.changes:
        result = f"caught by {failure}" if failure else "SURVIVED"
    else:
        result = f"FAILS: {failure}" if failure else "passes"
    tests = " ".join(Path(test).name for test in mutant.tests)
    print(f"{mutant.name:40}  {tests:33}  {seconds:3.0f} s  {result}", flush=True)  # noqa: T201 (a table)
    return bool(failure) == bool(mutant.changes)


def main(names: Sequence[str]) -> int:
    """Try the mutants of these names, or all; returns the exit code."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    tests = sorted({test for mutant in chosen for test in mutant.tests})
    unmutated = [Mutant("(unmutated)", (test,), ()) for test in tests]
    results = [_try(mutant) for mutant in (*unmutated, *chosen)]
    return 0 if chosen and all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
