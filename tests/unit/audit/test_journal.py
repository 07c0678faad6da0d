"""The files hold one chain, whoever appends, whatever the size, and nothing in them can be changed unseen."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.audit.journal import Journal, Position
from gateway.audit.verify import verify
from gateway.models import AuditAction, AuditEvent, AuditHead
from gateway.settings import AuditSettings
from tests.unit.audit.conftest import KEY

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOTHING = AuditHead()


def event(kernel_id: str = "k", **fields: object) -> AuditEvent:
    """Return an event."""
    return AuditEvent(action=AuditAction.KERNEL_DELETE, kernel_id=kernel_id, **fields)  # type: ignore[arg-type]


def write(journal: Journal, count: int, at: datetime = NOW) -> AuditHead:
    """Append events one by one; return the head."""
    head = NOTHING
    for number in range(count):
        head = journal.append([(at, event(f"k{number}"))], NOTHING)
    return head


def lines(directory: Path) -> list[bytes]:
    """Return every line of the trail."""
    return [line for path in sorted(directory.glob("*.jsonl")) for line in path.read_bytes().splitlines(True)]


def test_records(journal: Journal, directory: Path) -> None:
    """Records are numbered from 1, chained, one line each, in a file and directory for the owner alone."""
    head = write(journal, 3)
    records = [json.loads(line) for line in lines(directory)]

    assert [record["seq"] for record in records] == [1, 2, 3]
    assert [record["prev_hash"] for record in records[1:]] == [record["hash"] for record in records[:2]]
    assert head == AuditHead(seq=3, hash=records[-1]["hash"])
    assert records[0]["kernel_id"] == "k0"
    assert records[0]["at"] == "2026-01-01T00:00:00.000000Z"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert verify(journal, KEY, head).problem is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda all_: [*all_[:2], all_[2].replace(b"k2", b"kX"), *all_[3:]], "Record 3 was changed"),
        (lambda all_: [*all_[:2], all_[2].replace(b'":', b'": '), *all_[3:]], "Record 3 was changed"),
        (lambda all_: [*all_[:2], b"{}\n", *all_[3:]], "Record 3 is damaged"),
        (lambda all_: [*all_[:2], *all_[3:]], "Record 3 is missing"),
        (lambda all_: [*all_[:1], *all_[3:]], "Records 2 to 3 are missing"),
        (lambda all_: [*all_[:1], all_[2], all_[1], *all_[3:]], "Record 2 is missing"),
        (lambda all_: [*all_[:3], *all_[2:]], "Record 3 stands where record 4 should"),
        (lambda all_: all_[1:], "Record 1 is missing (the beginning was cut)"),
        (lambda all_: all_[:4], "Record 5 is missing (the end was cut)"),
        (lambda _all: [], "Records 1 to 5 are missing (the end was cut)"),
        (lambda all_: [*all_[:4], all_[4][:-1]], "Record 5 was changed"),
    ],
)
def test_tampering_is_found(journal: Journal, directory: Path, change, says: str) -> None:
    """An edit, a cut anywhere, a repetition or another order is found, and the first bad record named."""
    head = write(journal, 5)
    [file] = directory.glob("*.jsonl")
    file.write_bytes(b"".join(change(lines(directory))))

    problem = verify(Journal(directory, KEY, AuditSettings()), KEY, head).problem

    assert problem is not None
    assert problem.startswith(says)


def test_another_key_proves_nothing(directory: Path) -> None:
    """Who can write the file but lacks the key cannot make a trail that holds."""
    head = write(Journal(directory, b"x" * 32, AuditSettings()), 2)

    verdict = verify(Journal(directory, KEY, AuditSettings()), KEY, head)

    assert verdict.problem is not None
    assert verdict.problem.startswith("Record 1 was changed")


def test_a_trail_of_the_same_key_is_another(journal: Journal, directory: Path, tmp_path: Path) -> None:
    """A trail that was begun again with the same key does not pass for the one that the store knows."""
    head = write(journal, 3)
    other = Journal(tmp_path / "other", KEY, AuditSettings())
    write(other, 4, at=NOW + timedelta(seconds=1))

    problem = verify(other, KEY, head).problem

    assert problem is not None
    assert problem.startswith("Record 3 is of another trail")


def test_cut_numbers_are_not_used_again(journal: Journal, directory: Path) -> None:
    """After a cut the trail goes on behind what the store knows: the gap stays to be seen."""
    head = write(journal, 3)
    [file] = directory.glob("*.jsonl")
    file.write_bytes(b"".join(lines(directory)[:1]))

    head = Journal(directory, KEY, AuditSettings()).append([(NOW, event())], head)

    assert head.seq == 4
    assert str(verify(journal, KEY, head).problem).startswith("Records 2 to 3 are missing")


def test_an_incomplete_line_is_cut(journal: Journal, directory: Path) -> None:
    """What a crash left half written was acknowledged to nobody; the next record takes its place."""
    write(journal, 2)
    [file] = directory.glob("*.jsonl")
    with file.open("ab") as half:
        half.write(b'{"seq":3,"half')

    head = journal.append([(NOW, event())], NOTHING)

    assert head.seq == 3
    assert verify(journal, KEY, head).problem is None


def test_rotation_and_retention(directory: Path) -> None:
    """Files end by size and by day, old ones go, a record says so, and the rest still proves itself."""
    settings = AuditSettings(file_bytes=4096, retention_days=30)
    journal = Journal(directory, KEY, settings)
    write(journal, 40)
    head = journal.append([(NOW + timedelta(days=2), event())], NOTHING)
    files = journal.files()
    assert len(files) >= 4
    assert files[-1].stem == f"{head.seq:012d}"
    assert verify(journal, KEY, head).records == 41

    old = (NOW - timedelta(days=31)).timestamp()
    for path in files[:2]:
        os.utime(path, (old, old))
    os.utime(files[3], (old, old))
    kept_from = int(files[2].stem)
    head = journal.append([(NOW + timedelta(hours=1), event())], head)

    assert journal.files() == files[2:]
    verdict = verify(journal, KEY, head)
    assert (verdict.problem, verdict.first, verdict.last) == (None, kept_from, 43)
    pruned = json.loads(lines(directory)[-2])
    assert (pruned["action"], pruned["extra"]) == ("audit.prune", {"through": kept_from - 1})

    journal.files()[0].unlink()
    assert "the beginning was cut" in str(verify(journal, KEY, head).problem)


def test_processes_share_one_chain(journal: Journal, directory: Path) -> None:
    """Several processes that append at once make one chain without gaps."""
    script = f"""
from datetime import UTC, datetime
from pathlib import Path
from gateway.audit.journal import Journal
from gateway.models import AuditEvent, AuditHead
from gateway.settings import AuditSettings
journal = Journal(Path({str(directory)!r}), b"k" * 32, AuditSettings(file_bytes=4096))
for n in range(60):
    journal.append([(datetime.now(UTC), AuditEvent(action="key.create"))], AuditHead())
"""
    others = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    for _ in range(60):
        journal.append([(datetime.now(UTC), event())], NOTHING)
    assert [other.wait(60) for other in others] == [0, 0]

    verdict = verify(journal, KEY, NOTHING)

    assert (verdict.problem, verdict.records) == (None, 180)


def test_reading_goes_on_where_it_stopped(directory: Path) -> None:
    """A reader gets every record once, over files, in portions, from any number on; half a line waits."""
    journal = Journal(directory, KEY, AuditSettings(file_bytes=4096))
    write(journal, 30)
    seen, position = [], Position(3)
    while True:
        records, position = journal.read(position, 7)
        if not records:
            break
        seen += [record.seq for record in records]
    assert seen == list(range(4, 31))

    with journal.files()[-1].open("ab") as half:
        half.write(b'{"seq":31')
    assert journal.read(position, 7) == ([], position)
    journal.append([(NOW, event())], NOTHING)
    assert [record.seq for record in journal.read(position, 7)[0]] == [31]


def test_a_full_disk_leaves_no_part_of_a_record(journal: Journal, directory: Path, monkeypatch) -> None:
    """A write that falls short is an error, and the file is as it was."""
    write(journal, 2)
    before = lines(directory)
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:10]))

    with pytest.raises(OSError, match="No space"):
        journal.append([(NOW, event())], NOTHING)

    monkeypatch.undo()
    assert lines(directory) == before
    assert verify(journal, KEY, journal.append([(NOW, event())], NOTHING)).problem is None


def test_texts_are_bounded_and_storable() -> None:
    """An event takes any text: too long ones are cut, and half characters replaced."""
    made = event("x" * 600, target="\ud800", extra={"a" * 600: "b" * 600})

    assert len(made.kernel_id or "") == 512
    assert made.target == "?"
    assert {(len(name), len(str(value))) for name, value in made.extra.items()} == {(512, 512)}
