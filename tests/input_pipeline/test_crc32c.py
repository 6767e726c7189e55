"""CRC-32C against published values and a bit-by-bit division."""

import numpy as np
import pytest

from input_pipeline.crc32c import BLOCK, crc32c


def divided(data):
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 * (register & 1))
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "crc"),
    [  # RFC 3720, appendix B.4, and the check value of the catalogue of CRCs.
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_published_values(data, crc):
    assert crc32c(np.frombuffer(data, np.uint8)) == crc


@pytest.mark.parametrize(
    "length", [0, 1, 2, 3, 4, 5, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 4, 2 * BLOCK + 3]
)
def test_every_length(length):
    data = np.random.default_rng(length).integers(0, 256, (2, length), np.uint8)
    assert crc32c(data).tolist() == [divided(row) for row in data.tolist()]
