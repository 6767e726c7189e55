"""The records of TFRecord files, by number."""

from __future__ import annotations

import bisect
import itertools
import mmap
import pathlib
from collections.abc import Sequence
from typing import Protocol

import google_crc32c
import numpy as np

from input_pipeline.batches import DataError
from input_pipeline.decoding import BadRecord

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
    """The records of files, which are mapped into memory; where each record begins is found once.

    Args:
      paths: of the files, whose records follow each other.

    Raises:
      DataError: if a file cannot be read, or was cut off or altered.
    """

    def __init__(self, paths: Sequence[pathlib.Path]) -> None:
        self._paths = paths
        self._shards = [_mapped(path) for path in paths]
        self._offsets = [_offsets(p, s) for p, s in zip(paths, self._shards, strict=True)]
        self._firsts = list(itertools.accumulate(map(len, self._offsets), initial=0))
        self._checked = np.zeros(len(self), bool)

    def __len__(self) -> int:
        return self._firsts[-1]

    def name(self, at: int) -> str:
        """As "record 0 of train-0.tfrecord"."""
        shard, number = self._place(at)
        return f"record {number} of {self._paths[shard]}"

    def __getitem__(self, at: int) -> bytes:
        """The data of a record, compared with their checksum the first time; raises BadRecord where it is another."""
        shard, number = self._place(at)
        mapping, start = self._shards[shard], int(self._offsets[shard][number])
        length = int.from_bytes(mapping[start : start + 8], "little")
        first = start + HEADER_BYTES
        data = mapping[first : first + length]
        if not self._checked[at]:
            stored = mapping[first + length : first + length + FOOTER_BYTES]
            if not is_checksum(stored, data):
                raise BadRecord(
                    f"{self.name(at)} cannot be read (its checksum is wrong): mend or remove it"
                )
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


def _mapped(path: pathlib.Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = "it is empty" if isinstance(error, ValueError) else error.strerror
        raise DataError(f"{path} cannot be read ({reason}): write it again") from None


def _offsets(path: pathlib.Path, shard: mmap.mmap) -> np.ndarray:
    """Where each record begins, int64 `[n]`."""
    if shard[:2] == GZIP:
        raise DataError(f"{path} is compressed, which has no records by number: unpack it")
    found: list[int] = []
    at = 0
    while at + HEADER_BYTES <= len(shard):
        length, stored = shard[at : at + 8], shard[at + 8 : at + HEADER_BYTES]
        if not is_checksum(stored, length):
            raise DataError(
                f"{path} is no TFRecord file, or was altered at record {len(found)}: write it again"
            )
        found.append(at)
        at += HEADER_BYTES + int.from_bytes(length, "little") + FOOTER_BYTES
    if at != len(shard):
        cut = len(found) - (at > len(shard))
        raise DataError(f"{path} was cut off within record {cut}: copy or write it again")
    return np.array(found, np.int64)
