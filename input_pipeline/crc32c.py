"""CRC-32C (Castagnoli 1993), the checksum of TFRecord files, by table look-ups in NumPy.

The remainder is linear in the message: each byte adds a number that depends on its value and its distance from the end.
"""

from __future__ import annotations

import functools

import numpy as np

POLYNOMIAL = 0x82F63B78  # bits reversed
BLOCK = 4096
ALL_ONES = 0xFFFFFFFF
MASK = 0xA282EAD8


def masked_crc32c(data: np.ndarray) -> np.ndarray:
    """The checksums of messages of one length, rotated and moved as TFRecord files have them.

    Args:
      data: uint8 `[…, length]`.

    Returns:
      uint32 `[…]`.
    """
    crc = crc32c(data)
    rotated = (crc >> np.uint32(15)) | (crc << np.uint32(17))
    return ((rotated.astype(np.uint64) + np.uint64(MASK)) & np.uint64(ALL_ONES)).astype(np.uint32)


def crc32c(data: np.ndarray) -> np.ndarray:
    """The checksums of messages of one length, uint8 `[…, length]`, as uint32 `[…]`."""
    tables, distances = _tables()
    register = np.full(data.shape[:-1], ALL_ONES, np.uint32)
    # The first block takes the rest, so that all others are whole.
    start, end = 0, data.shape[-1] % BLOCK
    while end <= data.shape[-1]:
        block = data[..., start:end]
        length = end - start
        added = tables.take(distances[BLOCK - length :] + block)
        register = _through(register, length) ^ np.bitwise_xor.reduce(added, axis=-1)
        start, end = end, end + BLOCK
    return register ^ np.uint32(ALL_ONES)


def _through(register: np.ndarray, length: int) -> np.ndarray:
    """The register after `length` zeros: its own bytes, as if they were the first ones of the message."""
    if not length:
        return register
    tables, _ = _tables()
    moved = register >> np.uint32(8 * length) if length < 4 else np.zeros_like(register)
    for byte in range(min(4, length)):
        value = (register >> np.uint32(8 * byte)) & np.uint32(255)
        moved = moved ^ tables[length - 1 - byte][value]
    return moved


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """What a byte adds by its distance from the end, uint32 `[BLOCK, 256]`; and where each row begins, from the last on."""
    row = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        row = np.where(
            row & np.uint32(1), (row >> np.uint32(1)) ^ np.uint32(POLYNOMIAL), row >> np.uint32(1)
        )
    tables = np.empty((BLOCK, 256), np.uint32)
    tables[0] = row
    for distance in range(1, BLOCK):
        before = tables[distance - 1]
        tables[distance] = (before >> np.uint32(8)) ^ row[before & np.uint32(255)]
    return tables, np.arange(BLOCK - 1, -1, -1) * 256
