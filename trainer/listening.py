"""A server that listens on all interfaces, closed but to some addresses.

TensorFlow's server binds 0.0.0.0 and asks nobody for a password; neither can be changed. But it listens in this process, and a
socket takes a filter (classic BPF, as in socket(7)) of the packets that reach it: those for other addresses of this machine
are dropped by the kernel, as if nothing listened there.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import pathlib
import socket
import stat
import struct
from collections.abc import Collection, Iterator

SO_ATTACH_FILTER = 26
NETWORK_HEADER = 0xFFF00000
"""SKF_NET_OFF of linux/filter.h: where offsets into a packet begin at the header of IP."""
LOAD_WORD, LOAD_BYTE, SHIFT_RIGHT, JUMP_IF_EQUAL, RETURN = 0x20, 0x30, 0x74, 0x15, 0x06
DESTINATION = {4: 16, 6: 24}
"""Version of IP -> offset of the destination in its header, bytes."""


def close_to_others(port: int, addresses: Collection[str]) -> bool:
    """Drops what comes to this process's listening sockets of a port for another address than these.

    Args:
      port: that they listen on.
      addresses: of this machine, of IPv4 or IPv6.

    Returns:
      Whether there was such a socket, and all took the filter. False where this is not Linux.
    """
    program = b"".join(map(_passes, addresses)) + _instruction(RETURN, 0)
    taken = [_attach(one, program) for one in _listening(port)]
    return bool(taken) and all(taken)


def _listening(port: int) -> Iterator[socket.socket]:
    """Duplicates of this process's sockets that listen on the port."""
    descriptors = pathlib.Path("/proc/self/fd")
    for name in os.listdir(descriptors) if descriptors.is_dir() else []:
        # It may be closed by now.
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                internet = one.family in (socket.AF_INET, socket.AF_INET6)
                listens = internet and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if listens and one.getsockname()[1] == port:
                    yield one


def _attach(listening: socket.socket, program: bytes) -> bool:
    instructions = ctypes.create_string_buffer(program, len(program))
    filtered = struct.pack("HP", len(program) // 8, ctypes.addressof(instructions))
    try:
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filtered)
    except OSError:
        return False
    return True


def _passes(address: str) -> bytes:
    """Instructions that pass packets to this address whole, and go on after them with others."""
    named = ipaddress.ip_address(address)
    to = getattr(named, "ipv4_mapped", None) or named
    steps = [(LOAD_BYTE, NETWORK_HEADER), (SHIFT_RIGHT, 4), (JUMP_IF_EQUAL, int(to.version))]
    for number, word in enumerate(struct.unpack(f"!{len(to.packed) // 4}I", to.packed)):
        place = NETWORK_HEADER + DESTINATION[to.version] + 4 * number
        steps += [(LOAD_WORD, place), (JUMP_IF_EQUAL, word)]
    steps.append((RETURN, 0xFFFFFFFF))
    return b"".join(
        _instruction(code, value, len(steps) - 1 - place if code == JUMP_IF_EQUAL else 0)
        for place, (code, value) in enumerate(steps)
    )


def _instruction(code: int, value: int, skipped: int = 0) -> bytes:
    """`skipped` is how many instructions a comparison that fails leaves out."""
    return struct.pack("=HBBI", code, 0, skipped, value)
