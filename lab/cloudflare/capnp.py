"""Cap'n Proto messages, as much of them as cloudflared's registration needs.

Written from the encoding described at https://capnproto.org/encoding.html: a writer that makes one segment out of
`Struct` trees, and a reader that follows struct, list, far and capability pointers in any number of segments.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

WORD = 8
_MOST_SEGMENTS = 512
_MOST_BYTES = 1 << 20
"""A registration takes about 500 bytes."""


class FormatError(ValueError):
    """These bytes are no Cap'n Proto message that this module understands."""


@dataclass
class Capability:
    """A pointer to an interface: its index in the capability table of the payload."""

    index: int


@dataclass
class Struct:
    """A struct to be written.

    `data` is its data section, padded to whole words; a `str` pointer becomes Text, `bytes` Data, lists what they hold
    (of `Struct`: all with the same section sizes).
    """

    data: bytes = b""
    pointers: list[Struct | Capability | bytes | str | list[str] | list[Struct] | None] = field(default_factory=list)


def encode(root: Struct) -> bytes:
    """Return a message with its frame header."""
    segment = bytearray(WORD)
    _place(segment, 0, root)
    return struct.pack("<II", 0, len(segment) // WORD) + bytes(segment)


def _words(data: bytes) -> bytes:
    return data + bytes(-len(data) % WORD)


def _offset(segment: bytearray, at: int) -> int:
    """Return what a pointer at `at` holds to mean the end of the segment: words, shifted past the kind."""
    return ((len(segment) - at) // WORD - 1) << 2


def _place(segment: bytearray, at: int, value: object) -> None:
    """Append a value, and write the pointer to it at `at`."""
    if value is None:
        return
    if isinstance(value, Capability):
        struct.pack_into("<II", segment, at, 3, value.index)
    elif isinstance(value, Struct):
        data = _words(value.data)
        struct.pack_into("<iHH", segment, at, _offset(segment, at), len(data) // WORD, len(value.pointers))
        if not data and not value.pointers:
            struct.pack_into("<i", segment, at, -4)  # an empty struct points at itself: zero would be null
        _fill(segment, _reserve(segment, len(data) + WORD * len(value.pointers)), data, value.pointers)
    elif isinstance(value, (bytes, str)):
        content = value if isinstance(value, bytes) else value.encode() + b"\0"
        struct.pack_into("<iI", segment, at, _offset(segment, at) | 1, len(content) << 3 | 2)
        segment += _words(content)
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        struct.pack_into("<iI", segment, at, _offset(segment, at) | 1, len(value) << 3 | 6)
        first = _reserve(segment, WORD * len(value))
        for number, item in enumerate(value):
            _place(segment, first + WORD * number, item)
    elif isinstance(value, list):
        _place_structs(segment, at, value)
    else:
        raise TypeError(f"cannot write {type(value).__name__}")


def _place_structs(segment: bytearray, at: int, items: list[Struct]) -> None:
    data_words, pointers = len(_words(items[0].data)) // WORD, len(items[0].pointers)
    size = data_words + pointers
    struct.pack_into("<iI", segment, at, _offset(segment, at) | 1, (size * len(items)) << 3 | 7)
    segment += struct.pack("<iHH", len(items) << 2, data_words, pointers)
    first = _reserve(segment, WORD * size * len(items))
    for number, item in enumerate(items):
        _fill(segment, first + WORD * size * number, _words(item.data), item.pointers)


def _reserve(segment: bytearray, size: int) -> int:
    start = len(segment)
    segment += bytes(size)
    return start


def _fill(segment: bytearray, start: int, data: bytes, pointers: Sequence[object]) -> None:
    segment[start : start + len(data)] = data
    for number, pointer in enumerate(pointers):
        _place(segment, start + len(data) + WORD * number, pointer)


async def read(exactly: Callable[[int], Awaitable[bytes]]) -> Reader:
    """Read one message from a stream.

    Args:
        exactly: gives that many bytes of the stream; raises EOFError at its end.

    Raises:
        FormatError: a frame larger than any message of this protocol.
        EOFError: the stream ended.

    """
    count = struct.unpack("<I", await exactly(4))[0] + 1
    if count > _MOST_SEGMENTS:
        raise FormatError(f"{count} segments")
    sizes = struct.unpack(f"<{count}I", await exactly(4 * count))
    if count % 2 == 0:
        await exactly(4)
    if sum(sizes) * WORD > _MOST_BYTES:
        raise FormatError(f"a message of {sum(sizes) * WORD} bytes")
    segments = [await exactly(size * WORD) for size in sizes]
    root = _follow(segments, 0, 0)
    if not isinstance(root, Reader):
        raise FormatError("the root is no struct")
    return root


@dataclass
class Reader:
    """A struct that was read. Fields beyond what the sender wrote read as zero, "" or None, as the format wants."""

    segments: list[bytes]
    segment: int
    start: int
    data_size: int
    pointers: int

    def number(self, offset: int, kind: str) -> int:
        """Return a number at a byte offset of the data section; `kind` is a letter of the struct module."""
        size = struct.calcsize(f"<{kind}")
        if offset + size > self.data_size:
            return 0
        return int(struct.unpack_from(f"<{kind}", self.segments[self.segment], self.start + offset)[0])

    def flag(self, bit: int) -> bool:
        """Return a bit of the data section."""
        return bool(self.number(bit // 8, "B") >> bit % 8 & 1)

    def pointer(self, number: int) -> Reader | Capability | bytes | list[Reader] | None:
        """Return what a pointer points at; lists of bytes come as bytes, lists of pointers as one-pointer structs."""
        if number >= self.pointers:
            return None
        return _follow(self.segments, self.segment, self.start + self.data_size + WORD * number)

    def struct(self, number: int) -> Reader:
        """Return the struct a pointer points at; where there is none, one of defaults."""
        value = self.pointer(number)
        return value if isinstance(value, Reader) else Reader([b""], 0, 0, 0, 0)

    def data(self, number: int) -> bytes:
        """Return Data."""
        value = self.pointer(number)
        return value if isinstance(value, bytes) else b""

    def text(self, number: int) -> str:
        """Return Text."""
        return self.data(number).removesuffix(b"\0").decode("utf-8", "replace")

    def texts(self, number: int) -> list[str]:
        """Return a List(Text)."""
        value = self.pointer(number)
        return [item.text(0) for item in value] if isinstance(value, list) else []


def _follow(segments: list[bytes], segment: int, at: int) -> Reader | Capability | bytes | list[Reader] | None:
    try:
        low, high = struct.unpack_from("<iI", segments[segment], at)
        if (low, high) == (0, 0):
            return None
        kind, start = low & 3, at + WORD * ((low >> 2) + 1)
        if kind == 2:
            return _far(segments, low & 0xFFFFFFFF, high)
        if kind == 3:
            return Capability(high)
        return _target(segments, segment, start, kind, high)
    except (IndexError, struct.error) as wrong:
        raise FormatError(f"a pointer leaves the message: {wrong}") from None


def _far(segments: list[bytes], low: int, segment: int) -> Reader | Capability | bytes | list[Reader] | None:
    pad = (low >> 3) * WORD
    if not low & 4:
        if struct.unpack_from("<I", segments[segment], pad)[0] & 3 == 2:
            raise FormatError("a far pointer to a far pointer")
        return _follow(segments, segment, pad)
    first, target = struct.unpack_from("<II", segments[segment], pad)
    tag, high = struct.unpack_from("<II", segments[segment], pad + WORD)
    return _target(segments, target, (first >> 3) * WORD, tag & 3, high)


def _target(segments: list[bytes], segment: int, start: int, kind: int, high: int) -> Reader | bytes | list[Reader]:
    if kind == 0:
        return _within(Reader(segments, segment, start, (high & 0xFFFF) * WORD, high >> 16))
    size, count = high & 7, high >> 3
    if size == 2:
        content = segments[segment][start : start + count]
        if len(content) != count:
            raise FormatError("a list leaves the message")
        return content
    if size == 6:
        return [_within(Reader(segments, segment, start + WORD * number, 0, 1)) for number in range(count)]
    if size != 7:
        raise FormatError(f"lists of kind {size} are not understood")
    tag, sections = struct.unpack_from("<iI", segments[segment], start)
    data, pointers = (sections & 0xFFFF) * WORD, sections >> 16
    width = data + WORD * pointers
    if (tag >> 2) * width > count * WORD or tag < 0:
        raise FormatError("a list is longer than it says")
    first = start + WORD
    return [_within(Reader(segments, segment, first + width * number, data, pointers)) for number in range(tag >> 2)]


def _within(reader: Reader) -> Reader:
    if reader.start < 0 or reader.start + reader.data_size + WORD * reader.pointers > len(
        reader.segments[reader.segment]
    ):
        raise FormatError("a struct leaves the message")
    return reader
