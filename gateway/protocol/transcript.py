"""The outputs of one execution, kept within bounds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

from gateway.protocol.messages import MAX_VALUES

StreamName = Literal["stdout", "stderr"]

MAX_OUTPUTS = 10_000


def mark(size: int) -> str:
    """Return the line that stands where `size` bytes of output were cut."""
    return f"[cellblock: {size} bytes of output cut]"


@dataclass(slots=True)
class Bundle:
    """What a display shows. Every output with the same display id shows the same bundle."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    size: int
    values: int = 1
    display_id: str | None = None
    uses: int = 0


@dataclass(slots=True)
class _Stream:
    name: StreamName
    text: bytearray  # UTF-8, cut between characters only


@dataclass(slots=True)
class _Display:
    bundle: Bundle
    fields: dict[str, Any]


@dataclass(slots=True)
class _Error:
    fields: dict[str, Any]
    size: int
    values: int


_Entry = _Stream | _Display | _Error


class Transcript:
    """nbformat 4 outputs in order, of at most `max_bytes` (displays by the bytes of their messages).

    The head is kept until a stream does not fit in three quarters of the bytes, or the outputs become too
    many; what follows goes to a tail, which loses its oldest part as it grows. A mark between the two tells
    the bytes cut. A display that does not fit is replaced by a mark of its own.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._head: list[_Entry] = []
        self._tail: deque[_Entry] = deque()
        self._overflown = False
        self._bytes = 0
        self._values = 0
        self._cut: dict[str, int] = {"stdout": 0, "stderr": 0, "display_data": 0}
        self._bundles: dict[str, Bundle] = {}
        self.truncated = False

    def stream(self, name: StreamName, text: str) -> None:
        """Append text; it joins the stream output before it if that has the same name."""
        if len(text) > 2 * self._max_bytes:
            # the middle could not stay, and copies of it would be costly
            self.stream(name, text[: self._max_bytes])
            self._overflown = True
            self._note_cut(name, len(text[self._max_bytes : -self._max_bytes].encode("utf-8", "replace")))
            text = text[-self._max_bytes :]
        data = text.encode("utf-8", "replace")
        if not data:
            return
        if not self._overflown:
            room = max(0, self._max_bytes - self._max_bytes // 4 - self._bytes)
            kept = data if len(data) <= room else data[: _boundary(data, room)]
            last = self._head[-1] if self._head else None
            if kept and (_continues(last, name) or self._has_place()):
                self._bytes += len(kept)
                self._extend(self._head, name, kept)
                data = data[len(kept) :]
            if not data:
                return
            self._overflown = True
        self._bytes += len(data)
        self._extend(self._tail, name, data)
        self._trim()

    def display(self, bundle: Bundle, fields: dict[str, Any]) -> None:
        """Append a display; `fields` are output_type and what it has beside data and metadata."""
        bundle = self._updated(bundle) or bundle
        if not self._fits(bundle.size, bundle.values):
            self.cut(bundle.size)
            return
        if bundle.display_id is not None:
            self._bundles[bundle.display_id] = bundle
        self._show(bundle, fields)

    def update(self, bundle: Bundle) -> None:
        """Show a bundle wherever its display id was shown; an id not shown here is ignored."""
        self._updated(bundle)

    def error(self, fields: dict[str, Any], size: int) -> None:
        """Append an error output of `size` bytes, or a mark if it does not fit."""
        values = len(fields) + len(fields["traceback"])
        if not self._fits(size, values):
            self.cut(size)
            return
        self._bytes += size
        self._values += values
        self._append(_Error(fields, size, values))

    def cut(self, size: int) -> None:
        """Append a mark in place of an output of `size` bytes."""
        self.truncated = True
        bundle = _marked(size)
        if self._fits(bundle.size, bundle.values):
            self._show(bundle, {"output_type": "display_data"})
        else:
            self._overflown = True
            self._cut["display_data"] += size

    def outputs(self) -> list[dict[str, Any]]:
        """Return nbformat 4 outputs, marks included."""
        found: list[dict[str, Any]] = []
        for entry in self._head:
            _add(found, entry)
        for name, size in self._cut.items():
            if size and name != "display_data":
                line = f"\n{mark(size)}\n"
                _add(found, _Stream("stdout" if name == "stdout" else "stderr", bytearray(line.encode())))
            elif size:
                _add(found, _Display(_marked(size), {"output_type": "display_data"}))
        for entry in self._tail:
            _add(found, entry)
        return found

    def _updated(self, new: Bundle) -> Bundle | None:
        """Give the bundle of a display id new contents, or a mark if they do not fit; return it if known."""
        old = None if new.display_id is None else self._bundles.get(new.display_id)
        if old is None:
            return None
        growth, more = (new.size - old.size) * old.uses, (new.values - old.values) * old.uses
        if self._bytes + growth > self._max_bytes or self._values + more > MAX_VALUES:
            self.truncated = True
            new = _marked(new.size)
            growth, more = (new.size - old.size) * old.uses, (new.values - old.values) * old.uses
        self._bytes += growth
        self._values += more
        old.data, old.metadata, old.size, old.values = new.data, new.metadata, new.size, new.values
        return old

    def _fits(self, size: int, values: int) -> bool:
        # Once there is a tail, its older part makes room.
        room = self._max_bytes // 4 if self._overflown else self._max_bytes - self._bytes
        return size <= room and self._values + values <= MAX_VALUES

    def _has_place(self) -> bool:
        return len(self._head) < MAX_OUTPUTS - MAX_OUTPUTS // 4

    def _show(self, bundle: Bundle, fields: dict[str, Any]) -> None:
        bundle.uses += 1
        self._bytes += bundle.size
        self._values += bundle.values
        self._append(_Display(bundle, fields))

    def _append(self, entry: _Display | _Error) -> None:
        if not self._overflown and self._has_place():
            self._head.append(entry)
            return
        self._overflown = True
        self._tail.append(entry)
        self._trim()

    @staticmethod
    def _extend(
        entries: list[_Entry] | deque[_Entry],
        name: StreamName,
        data: bytes,
    ) -> None:
        last = entries[-1] if entries else None
        if isinstance(last, _Stream) and last.name == name:
            last.text += data
        else:
            entries.append(_Stream(name, bytearray(data)))

    def _trim(self) -> None:
        # The marks take places too.
        most = MAX_OUTPUTS - len(self._cut) - len(self._head)
        while self._tail and (self._bytes > self._max_bytes or len(self._tail) > most):
            oldest = self._tail[0]
            if isinstance(oldest, _Stream):
                whole = len(self._tail) > most
                size = len(oldest.text) if whole else min(len(oldest.text), self._bytes - self._max_bytes)
                size = _next_character(oldest.text, size)
                del oldest.text[:size]
                self._drop(oldest.name, size)
                if oldest.text:
                    continue
            elif isinstance(oldest, _Display):
                self._forget(oldest.bundle)
                self._drop("display_data", oldest.bundle.size)
            else:
                self._values -= oldest.values
                self._drop("display_data", oldest.size)
            self._tail.popleft()

    def _drop(self, name: str, size: int) -> None:
        self._bytes -= size
        self._note_cut(name, size)

    def _note_cut(self, name: str, size: int) -> None:
        self._cut[name] += size
        self.truncated = True

    def _forget(self, bundle: Bundle) -> None:
        bundle.uses -= 1
        self._values -= bundle.values
        if not bundle.uses and bundle.display_id is not None:
            del self._bundles[bundle.display_id]


def _marked(size: int) -> Bundle:
    line = mark(size)
    return Bundle({"text/plain": line}, {}, len(line))


def _continues(entry: object, name: StreamName) -> bool:
    return isinstance(entry, _Stream) and entry.name == name


def _add(outputs: list[dict[str, Any]], entry: _Entry) -> None:
    if isinstance(entry, _Error):
        outputs.append({"output_type": "error", **entry.fields})
    elif isinstance(entry, _Display):
        outputs.append({**entry.fields, "data": entry.bundle.data, "metadata": entry.bundle.metadata})
    elif outputs and outputs[-1].get("name") == entry.name:
        outputs[-1]["text"] += entry.text.decode()
    else:
        outputs.append({"output_type": "stream", "name": entry.name, "text": entry.text.decode()})


def _boundary(data: bytes, end: int) -> int:
    """Return the last place at or before `end` that is between two UTF-8 characters."""
    while 0 < end < len(data) and data[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _next_character(data: bytearray, start: int) -> int:
    """Return the first place at or after `start` that is between two UTF-8 characters."""
    while start < len(data) and data[start] & 0xC0 == 0x80:
        start += 1
    return start
