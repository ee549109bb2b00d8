"""Records of CSV and TSV text, and elements of a JSON array, one at a time whatever the file's size."""

import csv
import json
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO

MAX_RECORD = 64 * 1024 * 1024
"""Characters of a record that spans lines; a quote that stays open for longer is taken as never closed."""

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


class Broken(NamedTuple):
    """A physical line that begins no well-formed record."""

    line: str
    why: str


class _Runaway(Exception):
    pass


class CsvRecords:
    """Iterates over the records of RFC 4180 text: lists of fields, [] for a blank line, Broken for a bad line.

    Where quotes are unbalanced (text after a closing quote, or a quote never closed), only the record's first line is
    Broken and reading goes on with the next line, so that one stray quote cannot swallow its neighbours. Quotes
    inside an unquoted field are text. `taken` is the number of characters read so far.
    """

    def __init__(self, lines: TextIO, delimiter: str) -> None:
        self._lines = lines
        self._delimiter = delimiter
        self._again: deque[str] = deque()
        self._record: list[str] = []
        self.taken = 0

    def __iter__(self) -> Iterator[list[str] | Broken]:
        reader = self._reader()
        while True:
            self._record.clear()
            try:
                record = next(reader, None)
            except (csv.Error, _Runaway) as error:
                self._again.extendleft(reversed(self._record[1:]))
                yield Broken(self._record[0], str(error))
                reader = self._reader()
                continue
            if record is None:
                return
            yield record

    def _reader(self) -> Iterator[list[str]]:
        return csv.reader(self._feed(), delimiter=self._delimiter, strict=True)

    def _feed(self) -> Iterator[str]:
        span = 0
        while True:
            line = self._again.popleft() if self._again else next(self._lines, None)
            if line is None:
                return
            self.taken += len(line)
            span = span + len(line) if self._record else len(line)
            self._record.append(line)
            if span > MAX_RECORD and len(self._record) > 1:
                raise _Runaway("a quote is never closed")
            yield line


class JsonArrayError(ValueError):
    """The text is not one whole JSON array; the message says where it breaks."""


_DECODER = json.JSONDecoder(strict=False)
_LITERAL = 16
"""Longer than any literal or escape that the end of a chunk can cut in two."""
_AFTER = (" ", "\t", "\n", "\r", ",", "]")
_MAX_ELEMENT = 256 * 1024 * 1024


class JsonElements:
    """Iterates over the elements of a JSON array, decoded one at a time.

    Raw control characters in strings are taken as they are. Raises JsonArrayError where the array is broken.
    """

    def __init__(self, text: TextIO, chunk: int = 1 << 20) -> None:
        self._text = text
        self._chunk = chunk
        self._buffer = ""
        self._at = 0
        self._base = 0
        self._ended = False

    def __iter__(self) -> Iterator[Any]:
        self._expect("[", "no array begins")
        if self._peek() == "]":
            self._at += 1
        else:
            while True:
                self._peek()
                yield self._value()
                if self._peek() == "]":
                    self._at += 1
                    break
                self._expect(",", "no comma or ] follows an element")
        if self._peek():
            raise self._broken("text after the array's end")

    def _expect(self, character: str, otherwise: str) -> None:
        if self._peek() != character:
            raise self._broken(otherwise if self._buffer[self._at :] else "the array ends early")
        self._at += 1

    def _peek(self) -> str:
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in " \t\n\r":
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if self._ended:
                return ""
            self._more()

    def _value(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                # A chunk's end cuts strings anywhere, everything else within a few characters.
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._buffer) - _LITERAL
                if self._ended or not cut or len(self._buffer) - self._at > _MAX_ELEMENT:
                    self._at = error.pos
                    raise self._broken("the array ends early" if cut else error.msg) from None
            except (ValueError, RecursionError) as error:
                raise self._broken(str(error)) from None
            else:
                # A number cut in two reads as a shorter one: see what follows it.
                if self._ended or self._buffer[end : end + 1] in _AFTER or end + _LITERAL < len(self._buffer):
                    self._at = end
                    return value
            self._more()

    def _more(self) -> None:
        read = self._text.read(max(self._chunk, len(self._buffer) - self._at))
        self._base += self._at
        self._buffer, self._at, self._ended = self._buffer[self._at :] + read, 0, not read

    def _broken(self, what: str) -> JsonArrayError:
        return JsonArrayError(f"{what}, at character {self._base + self._at}")
