"""A server on all interfaces that is reached at its own addresses only."""

from __future__ import annotations

import os
import socket
import sys
import threading

import pytest

from trainer.listening import close_to_others

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="filters of sockets, and 127.0.0.2, are Linux's"
)


def reaches(address: str, port: int) -> bool:
    """Whether the server answers there; one that drops packets gives no answer at all."""
    try:
        with socket.create_connection((address, port), timeout=0.2) as connection:
            connection.sendall(b"?")
            return connection.recv(1) == b"!"
    except TimeoutError:
        return False


@pytest.fixture(params=["0.0.0.0", "::"])
def server(request):
    """Of IPv4, and of both, which is what 0.0.0.0 becomes in gRPC."""
    if request.param == "::" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    family = socket.AF_INET6 if request.param == "::" else socket.AF_INET
    dual = request.param == "::"
    with socket.create_server((request.param, 0), family=family, dualstack_ipv6=dual) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1)
                    connection.sendall(b"!")

        threading.Thread(target=serve, daemon=True).start()
        yield listening
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "own", [["127.0.0.1"], ["127.0.0.2"], ["127.0.0.3", "::ffff:127.0.0.1"], ["::1"]]
)
def test_only_its_addresses_are_reached(own, server):
    port = server.getsockname()[1]
    known = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    known += ["::1"] if server.family == socket.AF_INET6 else []
    assert all(reaches(address, port) for address in known)
    descriptors = set(os.listdir("/proc/self/fd"))
    assert close_to_others(port, own)
    # None is left open; the server may still close one of a connection.
    assert descriptors.issuperset(os.listdir("/proc/self/fd"))
    assert {address for address in known if reaches(address, port)} == {
        address.removeprefix("::ffff:") for address in own
    } & {*known}


def test_a_port_that_nobody_listens_on():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert not close_to_others(bound.getsockname()[1], ["127.0.0.1"])
