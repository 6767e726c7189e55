"""Workers that meet before TensorFlow starts, names that resolve late, ports that are taken, and peers that are gone."""

from __future__ import annotations

import concurrent.futures
import socket
import time

import pytest

from trainer import peers
from trainer.exits import LostPeer


@pytest.fixture
def hosts():
    """Addresses of three workers on ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    found = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return found


def outcomes(hosts, seconds, *workers, delay=0.0):
    """What `meet` said to each of the workers: None, or the line of its error; and the seconds at which it did."""
    started = time.monotonic()

    def one(worker):
        time.sleep(delay * worker)
        try:
            peers.meet(hosts, worker, seconds)
        except LostPeer as error:
            return str(error), time.monotonic() - started
        return None, time.monotonic() - started

    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(one, workers))


def connection(host):
    """To a port that will be listened to in a moment."""
    until = time.monotonic() + 5
    while True:
        try:
            return socket.create_connection(peers.split(host), timeout=5)
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def test_all_meet_and_their_ports_are_free_afterwards(hosts):
    """The first two wait for the last, which comes after 0.4 seconds."""
    found = outcomes(hosts, 20, 0, 1, 2, delay=0.2)
    assert [line for line, _ in found] == [None] * 3
    assert min(seconds for _, seconds in found) >= 0.4
    for host in hosts:
        peers.listen(host, "127.0.0.1").close()


def test_a_worker_that_does_not_come_is_named_on_the_first(hosts):
    (first, seconds), (second, _) = outcomes(hosts, 0.6, 0, 1)
    assert first == (
        f"worker 2 ({hosts[2]}) did not come within 0.6 seconds: see its log, and start all workers again, with the same "
        "--hosts, or wait longer with --start_seconds"
    )
    assert 0.6 <= seconds < 5
    assert second.startswith(f"worker 0 ({hosts[0]}) did not answer, or missed another worker,")
    ((alone, _),) = outcomes(hosts, 0.3, 0)
    assert alone.startswith(f"worker 1 ({hosts[1]}) and 1 more did not come within 0.3 seconds")


def test_the_first_that_does_not_come_is_named_on_the_others(hosts):
    ((line, _),) = outcomes(hosts, 0.4, 2)
    assert line.startswith(f"worker 0 ({hosts[0]}) did not answer")


def test_strangers_and_workers_of_other_lists_do_not_count(hosts):
    def strange():
        for said in (b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100, b"", b"\0" * 36):
            with connection(hosts[0]) as one:
                one.sendall(said)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(outcomes, hosts[:2], 2, 0)
        pool.submit(strange).result()
        other = pool.submit(outcomes, [hosts[0], hosts[2]], 0.5, 1)
        assert other.result()[0][0].startswith(f"worker 0 ({hosts[0]}) did not answer")
        assert first.result()[0][0].startswith(f"worker 1 ({hosts[1]}) did not come within 2 s")


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("worker", [0, 1])
def test_a_port_that_is_taken(hosts, address, worker):
    port = peers.split(hosts[worker])[1]
    with socket.create_server((address, port)):
        ((line, seconds),) = outcomes(hosts, 20, worker)
    assert line == (
        f"this worker's port, of {hosts[worker]}, cannot be taken (another process uses it): end what listens there, "
        "perhaps a worker of an earlier start, or give the workers other ports"
    )
    assert seconds < 5
    assert LostPeer.code == 75


def test_a_name_that_resolves_late():
    """The second name does at the third look, a second after the second."""
    now, looks = [0.0], []

    def resolve(host):
        looks.append(host)
        return None if host == "b:2" and looks.count("b:2") < 3 else f"10.0.0.{host[-1]}"

    def sleep(seconds):
        now[0] += seconds

    found = peers.wait_for_names(["a:1", "b:2"], 10, resolve, lambda: now[0], sleep)
    assert found == ["10.0.0.1", "10.0.0.2"]
    assert (now[0], looks) == (2.0, ["a:1", "b:2", "b:2", "b:2"])


@pytest.mark.parametrize(
    ("seconds", "known", "line"),
    [
        (
            2.5,
            {"a:1": "10.0.0.1"},
            "worker 1 (b:2) and 1 more: the name does not resolve after 2.5 seconds: see",
        ),
        (
            0,
            {"a:1": "10.0.0.1", "c:3": "10.0.0.3"},
            "worker 1 (b:2): the name does not resolve: see",
        ),
    ],
)
def test_a_name_that_does_not_resolve(seconds, known, line):
    now = [0.0]

    def sleep(more):
        now[0] += more

    with pytest.raises(LostPeer) as error:
        peers.wait_for_names(["a:1", "b:2", "c:3"], seconds, known.get, lambda: now[0], sleep)
    assert str(error.value).startswith(line)
    assert now[0] == seconds


def test_names_of_this_machine():
    assert peers.resolve("127.0.0.1:80") == "127.0.0.1"
    assert peers.resolve("[::1]:80") == "::1"
    assert peers.resolve("nowhere.invalid:80") is None


# ---------------------------------------------------------------------- what TensorFlow says, as it did


class UnavailableError(Exception):
    __module__ = "tensorflow.python.framework.errors_impl"


HOSTS = ["a:1", "b:2", "c:3"]
HEARTBEAT = """Graph execution error:

Detected at node CollectiveReduceV2 defined at (most recent call last):
Collective ops is aborted by: Error reported from /job:worker/task:1: The following tasks are unhealthy (stopped sending heartbeats):
/job:worker/replica:0/task:1
/job:worker/replica:0/task:2
The tasks have crashed. Check the task logs for an earlier error, or scheduler events (e.g. preemption, eviction) to debug further.
The error could be from a previous operation. Restart your program to reset.
\t [[{{node CollectiveReduceV2}}]] [Op:__inference_f_31]"""
LEADER = """Collective ops is aborted by: Failed to send RPC to coordination service. Either the leader task was preempted/died.
Additional GRPC error information from remote target /job:worker/replica:0/task:0 while calling /tensorflow.CoordinationService/Heartbeat:
:UNKNOWN:Error received from peer  {grpc_message:"failed to connect to all addresses", grpc_status:14}"""
RING = """failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:21806: Connection refused
Additional GRPC error information from remote target /job:worker/replica:0/task:2 while calling /tensorflow.WorkerService/RecvBuf:
:UNKNOWN:Error received from peer  {grpc_message:"failed to connect", grpc_status:14}"""
REMEDY = "see its log, and start all workers again; they go on from the last checkpoint"


@pytest.mark.parametrize(
    ("message", "worker", "line"),
    [
        (HEARTBEAT, 0, f"worker 1 (b:2) and 1 more are gone: {REMEDY}"),
        (LEADER, 1, f"worker 0 (a:1) is gone: {REMEDY}"),
        (RING, 0, f"worker 2 (c:3) is gone: {REMEDY}"),
        ("Collective ops is aborted by: cancelled", 0, f"another worker is gone: {REMEDY}"),
        (
            "Could not start gRPC server",
            1,
            "this worker's port, of b:2, cannot be taken (another process uses it): end what listens there, perhaps a "
            "worker of an earlier start, or give the workers other ports",
        ),
    ],
)
def test_errors_of_a_peer_are_one_line(message, worker, line):
    found = peers.lost(UnavailableError(message), HOSTS, worker)
    assert (str(found), found.code) == (line, 75)


@pytest.mark.parametrize(
    ("error", "hosts"),
    [
        (UnavailableError("OOM on /job:worker/replica:0/task:1/device:GPU:0"), HOSTS),
        (UnavailableError(LEADER), ["a:1"]),
        (ValueError(LEADER), HOSTS),
    ],
)
def test_other_errors_are_not_of_a_peer(error, hosts):
    assert peers.lost(error, hosts, 0) is None
