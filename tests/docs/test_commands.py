"""The commands of the how-to pages, as they stand there, on a receiver after a livestream."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from receiver.cli import main
from tests.helpers.pages import blocks, code, headings, pages, prose, read, rows, section
from tests.helpers.receiver import Process, running, wait_until
from tests.helpers.shell import run

REFERENCE = "docs/reference/commands.md"
# Of code that begins with a command: what follows the command's own words.
_INLINE = re.compile(r"receiver (?=[a-z])([^`\n|&;]*)")


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A receiver that has stored a livestream."""
    with running(tmp_path_factory.mktemp("receiver")) as process:
        run("receiver simulate", process.folder, process.environ)
        yield process
        assert process.stop() == 0


def told(receiver: Process, script: str, exit_code: int = 0) -> str:
    """What a block says on the receiver, which has other ports than the pages say."""
    here = script.replace("9464", str(receiver.operations_port)).replace("8443", str(receiver.port))
    return run(here, receiver.folder, receiver.environ, exit_code=exit_code)


def test_history(receiver: Process) -> None:
    """The commands show the job, and the picture of the page is drawn with the characters that it explains."""
    (block, picture) = blocks("docs/how-to/operate.md", "See what happened in a stream")
    shown = told(receiver, block.text)
    (job,) = {line.split()[0] for line in shown.splitlines() if " END " in line}
    drawn = told(receiver, f"receiver history {job[:6]}")
    for line in picture.text.splitlines()[3:]:
        words = line.split(maxsplit=3)[3].replace("|", "").replace(":", "").split()
        assert all(word in drawn for word in words if "rtmp" not in word), line
    assert re.search(r"^ {8}[=.-]{60}$", drawn, flags=re.MULTILINE)


def test_status(receiver: Process) -> None:
    """It says that the receiver is well."""
    (block,) = blocks("docs/how-to/operate.md", "A day with it", language="bash")[:1]
    assert "takes writes; 0 events wait" in told(receiver, block.text)


def test_report(receiver: Process) -> None:
    """Both commands end well, and the second has the livestream in its total."""
    (block,) = blocks("docs/how-to/operate.md", "Report by day and room")
    shown = told(receiver, block.text)
    assert "time zone Asia/Shanghai" in shown
    assert re.search(r"^total,,1,\d", shown, flags=re.MULTILINE)


def test_delete(receiver: Process) -> None:
    """Both commands take a job's whole id; without a terminal the second says what to give."""
    (block,) = blocks("docs/how-to/operate.md", "Delete all that is stored of a job")
    count, delete = block.text.splitlines()
    (job,) = {row["job_id"] for row in receiver.rows("SELECT DISTINCT job_id FROM events WHERE state = 'END'")}
    named = count.split()[2]
    assert told(receiver, count.replace(named, job)).startswith("Would delete 29 events")
    assert "--yes" in told(receiver, delete.replace(named, job), exit_code=2)


def test_doctor(receiver: Process) -> None:
    """What was rejected last is explained, and the made-up signature of the page, whose command fails."""
    of_last, captured = blocks("docs/how-to/operate.md", "Find out why a callback was rejected")
    assert receiver.request("POST", "/callbacks/of-nobody", b"{}").status == 404
    wait_until((receiver.folder / "var/journal.db.rejections.json").exists, "the rejections")
    assert "/callbacks/of-nobody" in told(receiver, of_last.text)
    assert "wrong" in told(receiver, captured.text, exit_code=1)


def test_made_up_events(receiver: Process) -> None:
    """Both commands send what the page says, and it is accepted."""
    (block,) = blocks("docs/how-to/operate.md", "Try it with made-up events")
    shown = told(receiver, block.text)
    assert re.search(r"^200 ", shown)
    assert "200 answered 200" in shown


def test_prune(receiver: Process) -> None:
    """It counts, and then deletes, what is older: here nothing."""
    (block,) = blocks("docs/how-to/prune.md")
    shown = told(receiver, block.text)
    for done in ("Would delete", "Deleted"):
        assert f"{done} 0 events, 0 quarantined, 0 streams, 0 jobs older than 90d." in shown


def test_certificate(receiver: Process) -> None:
    """It shows whose the served certificate is, and when it ends."""
    (block,) = blocks("docs/how-to/tls-certificate.md", language="bash")
    shown = told(receiver, block.text)
    assert "CN = localhost" in shown
    assert "notAfter=" in shown


def commands(group: click.Group = main, words: str = "") -> dict[str, click.Command]:
    """All commands by name, such as `quarantine list`."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found |= commands(command, f"{name} ") if isinstance(command, click.Group) else {words + name: command}
    return found


def test_reference_has_each_command() -> None:
    """The reference has a section for each command and for nothing else."""
    documented = {one.removeprefix("receiver ") for one in headings(REFERENCE) if one.startswith("receiver ")}
    assert documented == commands().keys()


@pytest.mark.parametrize("name", commands())
def test_reference_has_each_option(name: str) -> None:
    """A command's section lists its arguments and options, and no others."""
    parameters = [one for one in commands()[name].params if "--config" not in one.opts]
    expected = {
        (one.name or "").upper() if isinstance(one, click.Argument) else opt for one in parameters for opt in one.opts
    }
    found = {option for cells in rows(section(REFERENCE, f"receiver {name}")) for option in code(cells[0])}
    assert found == expected


def test_each_command_takes_the_configuration() -> None:
    """--config, of which the reference says that each command has it."""
    assert {name for name, one in commands().items() if not any("--config" in p.opts for p in one.params)} == set()


def named() -> set[str]:
    """The commands of the receiver that the pages name, in a sentence or in a block, with their options."""
    texts = [one for page in pages() for one in code(prose(page))]
    texts += [line for page in pages() for block in blocks(page) for line in block.text.splitlines()]
    return {f"receiver {match[1].strip()}" for one in texts if (match := _INLINE.match(one)) is not None}


@pytest.mark.parametrize("command", sorted(named()))
def test_each_command_that_is_named_exists(command: str) -> None:
    """Each command that a page names exists, with its options, and explains itself."""
    words = command.split()[1:]
    options = {word for word in words if word.startswith("--")}
    names = [word for word in words[:2] if word.isalpha() and word.islower()]
    result = CliRunner().invoke(main, [*names, "--help"])
    assert result.exit_code == 0, result.output
    assert len(result.output) > 100
    assert {option for option in options if option not in result.output} == set()


def test_make_targets() -> None:
    """Each `make` command that a page names is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), flags=re.MULTILINE))
    for page in (*pages(), "CONTRIBUTING.md"):
        assert set(re.findall(r"(?:^|`|=\d )make ([a-z]+)", read(page), flags=re.MULTILINE)) <= targets, page
