"""The records of TFRecord files, by number."""

from __future__ import annotations

import bisect
import errno
import io
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Protocol

import google_crc32c
import numpy as np

from input_pipeline.bad_records import BadRecord
from input_pipeline.batches import DataError
from input_pipeline.retrying import reason_of, retrying

HEADER_BYTES, FOOTER_BYTES = 12, 4
"""Of a record: its length, 8 bytes, and their checksum; the data; the checksum of these."""
GZIP = b"\x1f\x8b"


class Records(Protocol):
    """Records, numbered from 0."""

    def __len__(self) -> int: ...

    def name(self, at: int) -> str:
        """Of a record, for messages."""

    def __getitem__(self, at: int) -> bytes:
        """The data of a record; raises BadRecord."""

    def several(self, ids: Sequence[int]) -> list[bytes]:
        """The data of some records; raises BadRecord."""


class TFRecordFiles:
    """The records of files; where each record begins is found once.

    Files are read by calls, not mapped into memory, where an error of storage would end the process.

    Args:
      paths: of the files, whose records follow each other.

    Raises:
      DataError: if a file cannot be read, or was cut off or altered. Reading raises it too.
    """

    def __init__(self, paths: Sequence[pathlib.Path]) -> None:
        self._shards = [_Shard(path) for path in paths]
        self._offsets = [_offsets(shard) for shard in self._shards]
        self._firsts = list(itertools.accumulate(map(len, self._offsets), initial=0))
        self._checked = np.zeros(len(self), bool)

    def __len__(self) -> int:
        return self._firsts[-1]

    def name(self, at: int) -> str:
        """As "record 0 of train-0.tfrecord"."""
        shard, number = self._place(at)
        return f"record {number} of {self._shards[shard].path}"

    def __getitem__(self, at: int) -> bytes:
        """The data of a record, compared with their checksum the first time; raises BadRecord where it is another."""
        place, number = self._place(at)
        shard, offsets = self._shards[place], self._offsets[place]
        first = int(offsets[number]) + HEADER_BYTES
        end = int(offsets[number + 1]) if number + 1 < len(offsets) else shard.size
        if self._checked[at]:
            return shard.read(first, end - FOOTER_BYTES - first)
        data = checked(self.name(at), shard.read(first, end - first))
        self._checked[at] = True
        return data

    def several(self, ids: Sequence[int]) -> list[bytes]:
        """The data of some records; raises BadRecord."""
        return [self[at] for at in ids]

    def _place(self, at: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._firsts, at) - 1
        return shard, int(at) - self._firsts[shard]


def is_checksum(stored: bytes, data: bytes) -> bool:
    """Whether 4 bytes of a TFRecord file are the checksum of some data: their CRC-32C, rotated and moved."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF == int.from_bytes(stored, "little")


def data_bytes(head: bytes, path: str | pathlib.Path, number: int) -> int:
    """How long the data of a record are, by its header, which is compared with its checksum.

    Args:
      head: the header, or what there is of it.
      path: of the file, for messages.
      number: of the record, for messages.

    Raises:
      DataError: if the header was cut off or altered.
    """
    if len(head) < HEADER_BYTES:
        raise cut_off(path, number)
    length, stored = head[:8], head[8:]
    if not is_checksum(stored, length):
        raise DataError(
            f"{path} is no TFRecord file, or was altered at record {number}: write it again"
        )
    return int.from_bytes(length, "little")


def checked(name: str, record: bytes) -> bytes:
    """The data of a record, compared with the checksum that follows them; raises BadRecord."""
    data, stored = record[:-FOOTER_BYTES], record[-FOOTER_BYTES:]
    if not is_checksum(stored, data):
        raise BadRecord(f"{name} cannot be read (its checksum is wrong): mend or replace it")
    return data


def cut_off(path: str | pathlib.Path, number: int) -> DataError:
    """The error of a file that ends within a record."""
    return DataError(f"{path} was cut off within record {number}: copy or write it again")


def is_tfrecord(path: pathlib.Path) -> bool:
    """Whether a file is one of TFRecords, by its name or by its beginning."""
    if "tfrecord" in path.name:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError:
        return False
    return len(head) == HEADER_BYTES and is_checksum(head[8:], head[:8])


class _Shard:
    """A file that is read by any thread, and opened anew where storage fails.

    Attributes:
      path: of the file.
      size: in bytes.

    Raises:
      DataError: if it cannot be opened, or is empty.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        try:
            self._file = retrying(self._open, str(path), gone=False)
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): write it again") from None
        if not self.size:
            raise DataError(f"{path} cannot be read (it is empty): write it again")
        self._failed = False

    def read(self, start: int, length: int) -> bytes:
        """So many bytes from a place on; raises DataError."""
        try:
            return retrying(lambda: self._read(start, length), str(self.path))
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be read ({reason_of(error)}): mend it and start again"
            ) from None

    def _open(self) -> io.FileIO:
        return io.FileIO(self.path)

    def _read(self, start: int, length: int) -> bytes:
        if self._failed:  # Its handle may be stale.
            self._file, self._failed = self._open(), False
        file = self._file  # Stays open while it is read, whatever another thread does.
        try:
            found = b""
            while len(found) < length:
                more = os.pread(file.fileno(), length - len(found), start + len(found))
                if not more:
                    raise OSError(errno.EIO, "it is shorter than it was")
                found += more
        except OSError:
            self._failed = True
            raise
        return found


def _offsets(shard: _Shard) -> np.ndarray:
    """Where each record begins, int64 `[n]`."""
    path = shard.path
    if shard.read(0, min(2, shard.size)) == GZIP:
        raise DataError(f"{path} is compressed, which has no records by number: unpack it")
    found: list[int] = []
    at = 0
    while at < shard.size:
        head = shard.read(at, min(HEADER_BYTES, shard.size - at))
        length = data_bytes(head, path, len(found))
        found.append(at)
        at += HEADER_BYTES + length + FOOTER_BYTES
    if at > shard.size:
        raise cut_off(path, len(found) - 1)
    return np.array(found, np.int64)
