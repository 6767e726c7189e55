"""The other workers of a training: whether their names resolve, whether all are there, and which one is gone.

TensorFlow's server waits for the workers that are missing without a word; its first waits for ever, deaf to signals. So all meet
before it starts.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import ipaddress
import re
import socket
import time
from collections.abc import Callable, Sequence

from trainer.exits import LostPeer, UserError, WorkdirInUse

AGAIN_SECONDS = 0.2
ROUTE_PORT = 9
"""Any will do to ask for a route: nothing is sent."""
GO = b"go"
NO = b"no"
"""And then why."""
REMEDY = "see its log, and start all workers again"

GONE = re.compile(
    r"stopped sending heartbeats|Failed to send RPC to coordination service|Error reported from /job:worker"
    r"|Collective ops is aborted|failed to connect to all addresses|Connection reset by peer|Socket closed|/tensorflow\.CoordinationService/"
)
"""What TensorFlow says on the workers that are left."""
TASK = re.compile(r"/job:worker/(?:replica:\d+/)?task:(\d+)")
NAMED = re.compile(
    r"(?:unhealthy[^:]*|timed out task names):\s*((?:/job:worker/\S+\s*)+)", re.IGNORECASE
)
NO_SERVER = "Could not start gRPC server"


def split(host: str) -> tuple[str, int]:
    """ "name:port" or "[::1]:port" as a name and a port."""
    name, _, port = host.rpartition(":")
    return name.strip("[]"), int(port)


def resolve(host: str) -> str | None:
    """The first address of the name in "name:port", None if it has none."""
    try:
        return str(socket.getaddrinfo(*split(host), type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


def wait_for_names(
    hosts: Sequence[str],
    seconds: float,
    resolve: Callable[[str], str | None] = resolve,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Returns the addresses of all hosts once their names resolve: those of pods do so only once the pods are there.

    Args:
      hosts: "name:port" of each worker.
      seconds: how long to wait; with 0, names are looked up once.
      resolve, clock, sleep: for tests.

    Raises:
      LostPeer: if a name does not resolve in time.
    """
    until = clock() + seconds
    addresses: dict[str, str] = {}
    while True:
        for host in hosts:
            if host not in addresses and (address := resolve(host)):
                addresses[host] = address
        missing = [host for host in hosts if host not in addresses]
        if not missing:
            return [addresses[host] for host in hosts]
        if clock() >= until:
            raise LostPeer(
                f"{name(hosts, [hosts.index(host) for host in missing])}: the name does not resolve"
                f"{f' after {seconds:g} seconds' if seconds else ''}: see whether it was started, and its spelling"
            )
        sleep(min(1.0, max(until - clock(), 0.01)))


def own_address(addresses: Sequence[str], worker: int) -> str:
    """The address of this machine at which the other workers reach it.

    That of its name, unless this is only its own view: many systems give their own name a loopback address, and behind
    a translation of addresses the name's is not one of the machine. Then that of the interface by which it reaches another.

    Args:
      addresses: of all workers.
      worker: which of them this is.
    """
    own = addresses[worker]
    far = [address for address in addresses if not ipaddress.ip_address(address).is_loopback]
    others = [address for address in far if address != own]
    if not others or (own in far and _is_here(own)):
        return own
    with socket.socket(_family(others[0]), socket.SOCK_DGRAM) as route:
        try:
            route.connect((others[0], ROUTE_PORT))
        except OSError:
            return own
        return str(route.getsockname()[0])


def _is_here(address: str) -> bool:
    with socket.socket(_family(address), socket.SOCK_DGRAM) as one:
        try:
            one.bind((address, 0))
        except OSError:
            return False
    return True


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def listen(host: str, address: str) -> socket.socket:
    """Takes the port of "name:port" at an address of this machine.

    Raises:
      LostPeer: if another process has it.
    """
    try:
        # It may be a port whose last connections are still being closed, but none that is listened to.
        return socket.create_server((address, split(host)[1]), family=_family(address))
    except OSError as error:
        raise port_taken(host, error) from None


def port_taken(host: str, error: OSError | None = None) -> LostPeer:
    """The line of a port that cannot be taken."""
    used = error is None or error.errno == errno.EADDRINUSE
    reason = "another process uses it" if used or error is None else str(error.strerror).lower()
    return LostPeer(
        f"this worker's port, of {host}, cannot be taken ({reason}): end what listens there, perhaps a worker of an "
        "earlier start, or give the workers other ports"
    )


def meet(hosts: Sequence[str], worker: int, seconds: float) -> dict[int, socket.socket]:
    """Returns once every worker has called this: on the first its connections to all others, on these that to the first.

    The first listens on its port and tells the others when all are there; after that its port is free for TensorFlow's server.

    Raises:
      LostPeer: if a name does not resolve, the own port is taken or a worker does not come within the seconds; on each worker.
      WorkdirInUse: if the first worker says so, see `dismiss`.
    """
    until = time.monotonic() + seconds
    hello = _hello(hosts)
    addresses = wait_for_names(hosts, seconds)
    with listen(hosts[worker], own_address(addresses, worker)) as server:
        if worker == 0:
            return _gather(server, hosts, hello, until, seconds)
    return {0: _report(hosts, worker, hello, until, seconds)}


def dismiss(hosts: Sequence[str], why: str, seconds: float) -> None:
    """Instead of `meet`, on the first worker: tells each of the others that comes within the seconds why there is no training.

    Raises:
      LostPeer: if a name does not resolve or the own port is taken.
    """
    until, hello, missing = time.monotonic() + seconds, _hello(hosts), set(range(1, len(hosts)))
    address = own_address(wait_for_names(hosts, seconds), 0)
    with listen(hosts[0], address) as server:
        while missing and (left := until - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError):
                peer, _ = server.accept()
                with peer:
                    peer.settimeout(min(left, 5))
                    said = peer.makefile("rb").read(len(hello) + 4)
                    if said.startswith(hello):
                        peer.sendall(NO + why.encode())
                        missing.discard(int.from_bytes(said[len(hello) :], "big"))


def _hello(hosts: Sequence[str]) -> bytes:
    return hashlib.sha256(" ".join(hosts).encode()).digest()


def _gather(
    server: socket.socket, hosts: Sequence[str], hello: bytes, until: float, seconds: float
) -> dict[int, socket.socket]:
    size = len(hello) + 4
    with contextlib.ExitStack() as stack:
        arrived: dict[int, socket.socket] = {}
        while len(arrived) < len(hosts) - 1:
            left = until - time.monotonic()
            if left <= 0:
                missing = [i for i in range(1, len(hosts)) if i not in arrived]
                raise LostPeer(
                    f"{name(hosts, missing)} did not come within {seconds:g} seconds: {REMEDY}, with the same "
                    "--hosts, or wait longer with --start_seconds"
                )
            server.settimeout(left)
            with contextlib.suppress(OSError):  # Also of one that went away: it comes again.
                peer, _ = server.accept()
                stack.enter_context(peer)
                peer.settimeout(min(left, 5))
                said = peer.makefile("rb").read(size)
                number = int.from_bytes(said[len(hello) :], "big")
                if len(said) == size and said.startswith(hello) and 0 < number < len(hosts):
                    arrived[number] = peer
        for number, peer in arrived.items():
            try:
                peer.sendall(GO)
            except OSError:
                raise LostPeer(f"{name(hosts, [number])} is gone: {REMEDY}") from None
        stack.pop_all()
        return arrived


def _report(
    hosts: Sequence[str], worker: int, hello: bytes, until: float, seconds: float
) -> socket.socket:
    while (left := until - time.monotonic()) > 0:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.create_connection(split(hosts[0]), timeout=left))
            first.sendall(hello + worker.to_bytes(4, "big"))
            first.settimeout(max(until - time.monotonic(), 0.01))
            word = first.recv(len(GO), socket.MSG_WAITALL)
            if word == GO:
                stack.pop_all()
                return first
            if word == NO:
                raise WorkdirInUse(first.makefile("rb").read().decode(errors="replace"))
        time.sleep(min(AGAIN_SECONDS, max(until - time.monotonic(), 0)))
    raise LostPeer(
        f"{name(hosts, [0])} did not answer, or missed another worker, for {seconds:g} seconds: {REMEDY}, with the same "
        "--hosts, or wait longer with --start_seconds"
    )


def lost(error: BaseException, hosts: Sequence[str], worker: int) -> UserError | None:
    """What an error of TensorFlow says of the workers; None if it is of something else.

    Args:
      error: whatever was raised.
      hosts: of all workers.
      worker: which of them this is.
    """
    message = str(error)
    if len(hosts) < 2 or type(error).__module__.split(".")[0] != "tensorflow":
        return None
    if NO_SERVER in message:
        return port_taken(hosts[worker])
    if not GONE.search(message):
        return None
    named = NAMED.search(message)
    tasks = {int(task) for task in TASK.findall(named[1] if named else message)} - {worker}
    return gone(hosts, sorted(task for task in tasks if task < len(hosts)))


def gone(hosts: Sequence[str], workers: Sequence[int]) -> LostPeer:
    """The line of workers that have ended; none if it is not known who they are."""
    who = name(hosts, workers) if workers else "another worker"
    return LostPeer(
        f"{who} {'are' if len(workers) > 1 else 'is'} gone: {REMEDY}; they go on from the last checkpoint"
    )


def silent(hosts: Sequence[str], workers: Sequence[int], seconds: float) -> LostPeer:
    """The line of workers that were not heard for so long."""
    return LostPeer(
        f"{name(hosts, workers)} did not beat for {seconds:g} seconds, stopped or cut off: {REMEDY}; "
        "they go on from the last checkpoint"
    )


def name(hosts: Sequence[str], workers: Sequence[int]) -> str:
    """ "worker 2 (c:3) and 4 more"."""
    more = f" and {len(workers) - 1} more" if len(workers) > 1 else ""
    return f"worker {workers[0]} ({hosts[workers[0]]}){more}"
