"""What pages missed: given once, in order, whole; or with marks of exactly what did not fit."""

from __future__ import annotations

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.kernels.replay import MAX_AWAY, MAX_GAPS, MAX_PARENT_BYTES, OVERHEAD_BYTES, Gap, Replay
from gateway.models import DeathReason, Message, Page
from gateway.protocol.messages import make

AMPLE = 64 << 20
PARENTS = {name: make("shell", "execute_request", {}, parent=None, session="s") for name in "xyz"}
# "reload" is a page that never comes back by itself; the others are alice's tabs, and an admin's
PAGES = {
    "one": Page("alice", "one"),
    "two": Page("alice", "two"),
    "reload": Page("alice", None),
    "admin": Page("root", "one"),
}


class Reader:
    """A subscriber that is only told apart from others."""

    def deliver(self, message: Message) -> None:
        """Take nothing."""

    def ended(self, reason: DeathReason) -> None:
        """Take nothing."""


class Tab:
    """A page as a browser has it: what came to it, and what of that it has read and confirmed."""

    def __init__(self, replay: Replay, page: Page) -> None:
        self._replay = replay
        self.page = page
        self.reader: Reader | None = None
        self.coming: list[Message | Gap] = []
        self.read: list[Message | Gap] = []
        self.first_since: int | None = None

    def join(self, *, current: bool = False) -> None:
        """Connect, whatever became of the connection before."""
        self.reader = Reader()
        joined = self._replay.join(self.reader, self.page, current=current)
        self.coming = list(joined.items)
        if self.first_since is None:
            self.first_since = joined.since

    def take(self, share: float) -> None:
        """Read a share of what came, and confirm it."""
        count = round(share * len(self.coming))
        taken, self.coming = self.coming[:count], self.coming[count:]
        self.read += taken
        if taken and self.reader:
            self._replay.confirm(self.reader, taken[-1].offset)

    def leave(self) -> None:
        """Lose the connection, and with it what is on the way."""
        if self.reader:
            self._replay.leave(self.reader)
        self.reader, self.coming = None, []


def said(kind: str = "stream", size: int = 100, parent: str = "x") -> Message:
    """Return a kernel's message of about that size."""
    made = make("iopub", kind, {"text": "x" * size}, parent=PARENTS[parent], session="s")
    made.authored = False
    # exactly as large as it is, as from a socket: what writes JSON allocates more
    made.header, made.content, made.metadata = map(
        bytes, map(bytearray, (made.header, made.content, made.metadata))
    )
    return made


def offsets(items: list[Message | Gap]) -> list[int]:
    """Return where each of them stands."""
    return [item.offset for item in items]


kinds = st.sampled_from(["stream", "stream", "display_data", "status", "error", "comm_msg"])
says = st.tuples(st.just("say"), kinds, st.integers(0, 3000), st.sampled_from("xyz"))
moves = st.tuples(
    st.sampled_from(["join", "leave", "take"]), st.sampled_from(sorted(PAGES)), st.floats(0, 1), st.just("")
)
outputs = st.tuples(st.just("say"), st.just("stream"), st.integers(0, 3000), st.just("x"))


def play(replay: Replay, steps: list[tuple[str, str, float, str]]) -> tuple[dict[str, Tab], list[Message]]:
    """Let a kernel speak and pages come and go; at last all named ones come back and read to the end."""
    tabs = {name: Tab(replay, page) for name, page in PAGES.items()}
    history = []
    for what, name, number, parent in steps:
        if what == "say":
            message = said(name, int(number), parent)
            replay.add(message)
            history.append(message)
            for tab in tabs.values():
                if tab.reader:
                    tab.coming.append(message)
        elif what == "join":
            tabs[name].join()
        elif what == "leave":
            tabs[name].leave()
        else:
            tabs[name].take(number)
    for name, tab in tabs.items():
        tab.leave()
        if tab.first_since is not None and name != "reload":
            tab.join()
            tab.take(1.0)
    return tabs, history


@given(st.lists(says | moves, max_size=80))
@settings(deadline=None)
def test_every_page_gets_all_of_it_once_and_in_order(steps: list[tuple[str, str, float, str]]) -> None:
    """Wherever connections break: a page that comes back has every message since it was first there, once."""
    tabs, history = play(Replay(AMPLE), steps)

    for name, tab in tabs.items():
        if tab.first_since is not None and name != "reload":
            assert tab.read == [message for message in history if message.offset > tab.first_since]
            assert offsets(tab.read) == sorted(set(offsets(tab.read)))


@given(st.lists(says | moves, max_size=80))
@settings(deadline=None)
def test_in_little_space_order_holds_and_states_go_last(steps: list[tuple[str, str, float, str]]) -> None:
    """What does not fit is output first: while there is any left, no state and no error is let go of."""
    replay = Replay(12_000)
    tabs, history = play(replay, steps)
    vital = [message for message in history if message.msg_type in {"status", "error"}]
    fits = sum(message.size + OVERHEAD_BYTES for message in vital) <= 12_000

    assert replay.held_bytes <= 12_000
    for name, tab in tabs.items():
        if tab.first_since is None or name == "reload":
            continue
        assert offsets(tab.read) == sorted(set(offsets(tab.read)))
        if fits:
            assert [each for each in tab.read if isinstance(each, Message) and each in vital] == [
                each for each in vital if each.offset > tab.first_since
            ]


@given(st.lists(outputs | moves, max_size=80), st.integers(1000, 20_000))
@settings(deadline=None)
def test_marks_say_exactly_how_much_is_missing(steps: list[tuple[str, str, float, str]], space: int) -> None:
    """What a page was given and what its marks tell of is together all that was said, to the byte."""
    tabs, history = play(Replay(space), steps)

    for name, tab in tabs.items():
        if tab.first_since is not None and name != "reload":
            wanted = sum(message.size for message in history if message.offset > tab.first_since)
            assert sum(item.size for item in tab.read) == wanted


def test_the_mark_stands_where_the_output_is_missing() -> None:
    """A mark has the parent of what it stands for, and comes before what is left of it."""
    replay = Replay(10_000)
    tab = Tab(replay, PAGES["one"])
    tab.join()
    tab.leave()
    for parent in "xxy":
        replay.add(said("stream", 3000, parent))

    tab.join()

    assert [type(item) for item in tab.coming] == [Gap, Message, Message]
    gap = tab.coming[0]
    assert isinstance(gap, Gap)
    assert (gap.parent_id, gap.parent_header) == (PARENTS["x"].msg_id, PARENTS["x"].header)
    assert gap.size == said("stream", 3000).size


def test_a_page_that_never_was_there_gets_nothing_old() -> None:
    """The first page of a principal's starts where it comes in, whatever others have missed."""
    replay = Replay(AMPLE)
    admin = Tab(replay, PAGES["admin"])
    admin.join()
    admin.leave()
    replay.add(said())
    tab = Tab(replay, PAGES["one"])

    tab.join()

    assert tab.coming == []


def test_another_page_gets_what_nobody_has_seen() -> None:
    """A new page that is alone takes over where its principal's last page left; the next one after it."""
    replay = Replay(AMPLE)
    old, new, third = (Tab(replay, page) for page in (PAGES["one"], PAGES["reload"], PAGES["two"]))
    old.join()
    old.leave()
    missed = said()
    replay.add(missed)

    new.join()
    third.join()

    assert new.coming == [missed]
    assert third.coming == []
    old.join()
    assert old.coming == [missed]


def test_replies_are_for_the_page_that_asked() -> None:
    """A reply is kept for its page alone, or for the page that takes over for all of its principal's."""
    replay = Replay(AMPLE)
    one, two = Tab(replay, PAGES["one"]), Tab(replay, PAGES["two"])
    one.join()
    two.join()
    one.leave()
    reply = make("shell", "execute_reply", {}, parent=PARENTS["x"], session="s")
    replay.add(reply, PAGES["one"])

    two.leave()
    two.join()
    assert two.coming == [reply], "it is the only one there"
    two.leave()
    admin = Tab(replay, PAGES["admin"])
    admin.join()
    assert admin.coming == []
    one.join()
    assert one.coming == [reply]
    two.join()
    assert two.coming == [], "its own page is there"


def test_the_current_execution_is_kept_for_who_comes_late() -> None:
    """While it runs, its output is given from its start to who asks, also when all others have it."""
    replay = Replay(AMPLE)
    first, late = Tab(replay, PAGES["one"]), Tab(replay, PAGES["two"])
    first.join()
    before, after, other = said(parent="y"), said(), said(parent="z")
    replay.add(before)
    replay.begin(PARENTS["x"].msg_id)
    for message in (after, other):
        replay.add(message)
    first.coming = [before, after, other]
    first.take(1.0)

    late.join(current=True)
    assert late.coming == [after]
    late.leave()
    replay.end(PARENTS["x"].msg_id)
    late.join(current=True)

    assert late.coming == []


def test_nothing_is_held_when_nobody_needs_it() -> None:
    """What every page has confirmed is let go of; without any page nothing is kept at all."""
    replay = Replay(AMPLE)
    replay.add(said())
    assert replay.held_bytes == 0
    tab = Tab(replay, PAGES["one"])
    tab.join()
    for _ in range(10):
        message = said()
        replay.add(message)
        tab.coming.append(message)
    assert replay.held_bytes > 0

    tab.take(1.0)

    assert replay.held_bytes == 0
    tab.leave()
    replay.add(said())
    assert replay.held_bytes > 0
    tab.join()
    tab.take(1.0)
    assert replay.held_bytes == 0


def test_a_restart_lets_go_of_output_and_says_so() -> None:
    """After `clear` a page finds a mark where its output was, and the replies that it waits for."""
    replay = Replay(AMPLE)
    tab = Tab(replay, PAGES["one"])
    tab.join()
    tab.leave()
    reply = make("shell", "execute_reply", {}, parent=PARENTS["x"], session="s")
    replay.add(said())
    replay.add(reply, PAGES["one"])

    replay.clear()
    tab.join()

    assert [type(item) for item in tab.coming] == [Gap, Message]
    assert tab.coming[1] is reply


def test_a_page_that_connects_anew_takes_the_place_of_its_old_socket() -> None:
    """The old socket of the same page, which may be long dead, neither confirms nor leaves any more."""
    replay = Replay(AMPLE)
    tab = Tab(replay, PAGES["one"])
    tab.join()
    stale = tab.reader
    assert stale is not None
    missed = said()
    replay.add(missed)

    tab.join()
    assert tab.reader is not None
    replay.confirm(stale, missed.offset)
    replay.leave(stale)

    assert tab.coming == [missed]
    assert replay.held_bytes > 0
    assert (replay.page_of(stale), replay.page_of(tab.reader)) == (None, PAGES["one"])


def test_an_earlier_gateways_pages_are_owed_everything() -> None:
    """After an adoption every page that comes gets all since then, until that is over."""
    replay = Replay(AMPLE)
    replay.inherit()
    missed = said()
    replay.add(missed)
    one, two, admin = (Tab(replay, PAGES[name]) for name in ("one", "two", "admin"))

    one.join()
    two.join()
    replay.disinherit()
    admin.join()

    assert (one.coming, two.coming, admin.coming) == ([missed], [missed], [])


def test_memory_is_bounded() -> None:
    """Whatever a kernel says while pages are away, what is really held stays near the setting."""
    space = 2 << 20
    replay = Replay(space)
    for number in range(4 * MAX_AWAY):
        tab = Tab(replay, Page("alice", str(number)))
        tab.join()
        tab.leave()
    tracemalloc.start()
    try:
        for number in range(20_000):
            message = said("status" if number % 3 else "stream", number % 500)
            message.parent_id = str(number)
            message.parent_header = b'{"msg_id": "%d", "x": "%s"}' % (number, b"x" * (number % 300))
            replay.add(message)
            assert replay.held_bytes <= space
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held < space + MAX_GAPS * (MAX_PARENT_BYTES + 1000)
