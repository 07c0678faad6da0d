"""The journal of a job: numbered, bounded, and waited for."""

from __future__ import annotations

import asyncio

from gateway.services.journal import JOINED_CHARS, Journal


def test_events_are_numbered_from_one() -> None:
    """Numbers have no gaps, and a cursor gives what comes after it."""
    journal = Journal(1 << 20)
    for number in range(5):
        journal.add("stdout", text=f"{number}")
        journal.after(0)

    assert [event.seq for event in journal.after(0)] == [1, 2, 3, 4, 5]
    assert [event.text for event in journal.after(3)] == ["3", "4"]
    assert journal.after(5) == []
    assert journal.after(99) == []


def test_texts_grow_together_until_they_are_read() -> None:
    """Small texts of one stream are one event until somebody has seen it; then a new one begins."""
    journal = Journal(1 << 20)
    journal.add("stdout", text="a")
    journal.add("stdout", text="b")
    journal.add("stderr", text="c")
    journal.add("stdout", text="d", task=1)

    assert [event.text for event in journal.after(0)] == ["ab", "c", "d"]

    journal.add("stdout", text="e", task=1)

    assert [event.text for event in journal.after(3)] == ["e"]


def test_texts_do_not_grow_without_end() -> None:
    """What is joined has a bound, so that no text is copied over and over."""
    journal = Journal(1 << 20)
    for _ in range(10):
        journal.add("stdout", text="x" * (JOINED_CHARS // 2))

    assert all(len(event.text or "") <= JOINED_CHARS for event in journal.after(0))
    assert len("".join(event.text or "" for event in journal.after(0))) == 5 * JOINED_CHARS


def test_what_is_let_go_of_is_told() -> None:
    """Past its bound the oldest events go, and whoever has not read them gets a gap that counts bytes."""
    journal = Journal(100_000)
    for _ in range(100):
        journal.add("stdout", text="x" * 5000)
        journal.after(0)

    found = journal.after(0)

    assert journal.size <= 100_000
    assert found[0].type == "gap"
    assert (found[0].bytes or 0) > 300_000
    assert [event.seq for event in found] == list(range(found[0].seq, 101))
    assert [event.type for event in journal.after(found[0].seq)][:1] == ["stdout"]
    assert journal.after(99)[0].seq == 100


def test_the_newest_event_stays_however_large() -> None:
    """An event larger than the bound is kept until the next one comes."""
    journal = Journal(1000)
    journal.add("display", data={"text/plain": "x" * 10_000})

    assert [event.type for event in journal.after(0)] == ["display"]


async def test_news_are_waited_for() -> None:
    """Everybody who waits is woken by an event, and by the end."""
    journal = Journal(1 << 20)
    waiting = [asyncio.create_task(journal.news(0, 5)) for _ in range(3)]
    await asyncio.sleep(0)
    journal.add("started")

    await asyncio.wait_for(asyncio.gather(*waiting), 1)

    last = asyncio.create_task(journal.news(1, 5))
    await asyncio.sleep(0)
    journal.close()

    await asyncio.wait_for(last, 1)


async def test_waiting_has_an_end() -> None:
    """Who waits in vain goes on after the time given."""
    began = asyncio.get_running_loop().time()

    await Journal(1000).news(0, 0.05)

    assert 0.04 < asyncio.get_running_loop().time() - began < 1


def test_a_journal_of_kept_events() -> None:
    """What was kept reads like before, its gap included."""
    journal = Journal(10_000)
    for _ in range(10):
        journal.add("stdout", text="x" * 2000)
        journal.after(0)

    again = Journal(1 << 62, journal.events(), forgotten=journal.forgotten)

    assert again.after(0) == journal.after(0)
    assert again.last == journal.last
