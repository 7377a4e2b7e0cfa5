"""JSON files of any length, read entry by entry."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode

LONGEST = 1 << 28
"""Characters that one value may have; a text without an end is then no reason to read the whole file into memory."""


class JsonStream:
    """A JSON file whose lists are read one entry at a time: of the file, only an entry is ever in memory.

    A stream of its own, because the faster libraries (ijson on YAJL) know no lone surrogates, which is how a file name
    that is not UTF-8 is written.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be read; also by the methods.
        ValueError: If it is no JSON, as far as it was read; also by the methods.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as reader:
            self._first = reader.peek()
            if self._first not in ("{", "["):
                reader.value()
                reader.end()

    @property
    def is_object(self) -> bool:
        """Whether the file holds an object."""
        return self._first == "{"

    @property
    def is_list(self) -> bool:
        """Whether the file holds a list."""
        return self._first == "["

    def items(self) -> Iterator[Any]:
        """The entries of a file that is a list."""
        with self._opened() as reader:
            yield from reader.items()
            reader.end()

    def entries(self, key: str, *, stop: bool = False) -> Iterator[Any]:
        """The entries of the list under a key of a file that is an object.

        Args:
            key: Of the object.
            stop: End with the list; else the rest of the file is looked at, too: whether it is JSON.

        Raises:
            KeyError: If there is no such key.
            TypeError: If there is no list under it.
        """
        found = False
        with self._opened() as reader:
            for name in reader.members():
                if name != key:
                    reader.skip()
                    continue
                if found:
                    raise ValueError(f"`{key}` is given twice")
                if reader.peek() != "[":
                    reader.skip()
                    raise TypeError(key)
                found = True
                yield from reader.items()
                if stop:
                    return
            reader.end()
        if not found:
            raise KeyError(key)

    def _opened(self) -> "_Reader":
        return _Reader(open(self.path, encoding="utf-8", newline=""))


class _Reader:
    """A place in a text, and what of the text is in memory."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text, self._at = "", 0
        self._before = 0  # characters that came before the text
        self._ended = False

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read()

    def take(self, *expected: str) -> str:
        """The next character that is no space, which must be one of some."""
        character = self.peek()
        if character not in expected:
            raise self._error("Expecting " + " or ".join(map(repr, expected)), self._at)
        self._at += 1
        return character

    def value(self) -> Any:
        """The next value, which may be of any kind."""
        self.peek()
        while True:
            try:
                value, end = _decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not self._cut_short(error):
                    raise self._error(error.msg, error.pos) from None
            else:
                # A number at the end of what was read may go on: after "1.5", with "e+7".
                if end < len(self._text) - 2 or self._ended:
                    self._at = end
                    return value
            if len(self._text) - self._at > LONGEST:
                raise self._error(f"A value of more than {LONGEST} characters begins", self._at)
            self._read()

    def members(self) -> Iterator[str]:
        """The keys of an object; the value of each is to be read before the next is asked for."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                raise self._error("Expecting property name enclosed in double quotes", self._at)
            key = self.value()
            self.take(":")
            yield key
            if self.take(",", "}") == "}":
                return

    def items(self) -> Iterator[Any]:
        """The entries of a list."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",", "]") == "]":
                return

    def skip(self) -> None:
        """Pass over a value."""
        if self.peek() != "[":
            self.value()
            return
        for _ in self.items():
            pass

    def end(self) -> None:
        """See that nothing follows."""
        if self.peek():
            raise self._error("Extra data", self._at)

    def _read(self) -> None:
        """Read on, twice as much each time for a value that needs it."""
        rest = len(self._text) - self._at
        more = self._file.read(max(_CHUNK, rest))
        self._ended = not more
        self._before += self._at
        self._text, self._at = self._text[self._at :] + more, 0

    def _cut_short(self, error: json.JSONDecodeError) -> bool:
        """Whether an error may come from the end of what was read."""
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - 16

    def _error(self, message: str, position: int) -> ValueError:
        return ValueError(f"{message} at character {self._before + position}")
