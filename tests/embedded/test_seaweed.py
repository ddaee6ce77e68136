"""The embedded object store: its objects, its death and its borders."""

import contextlib
import http.client
import importlib.metadata
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from dreamforge.embedded import EmbeddedError, EmbeddedSeaweed
from tests.embedded.conftest import listening, of_home, start_and_be_killed

_PIXELS = bytes(range(256)) * 400


@contextlib.contextmanager
def client(store: EmbeddedSeaweed, **changes: str) -> Iterator[Any]:
    """An S3 client with the store's keys, or others."""
    given = {"aws_access_key_id": store.access_key, "aws_secret_access_key": store.secret_key} | changes
    made = boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        region_name="us-east-1",
        config=Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            # As every client of the service does: a server that has just started may drop a connection.
            retries={"mode": "standard", "total_max_attempts": 3},
            connect_timeout=3,
            read_timeout=10,
            proxies={},
        ),
        **given,
    )
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def stores(lasting_home: Path) -> Iterator[list[EmbeddedSeaweed]]:
    """The stores of one home, each started after the one before it had ended; the last one runs."""
    first = EmbeddedSeaweed.start(lasting_home)
    with client(first) as s3:
        s3.create_bucket(Bucket="pictures")
        s3.put_object(Bucket="pictures", Key="kept", Body=_PIXELS)
    yield (started := [first])
    for store in started:
        store.stop()


@pytest.fixture
def seaweed(stores: list[EmbeddedSeaweed]) -> EmbeddedSeaweed:
    """A running store with an object `kept` in a bucket."""
    return stores[-1]


@pytest.fixture
def restart(stores: list[EmbeddedSeaweed], lasting_home: Path) -> Callable[[], EmbeddedSeaweed]:
    """Starts once more, and sees that the object is still there and others can be added."""

    def start() -> EmbeddedSeaweed:
        stores.append(store := EmbeddedSeaweed.start(lasting_home))
        with client(store) as s3:
            assert s3.get_object(Bucket="pictures", Key="kept")["Body"].read() == _PIXELS
            s3.put_object(Bucket="pictures", Key="more", Body=b"")
        return store

    return start


def test_objects_keys_and_endpoint_survive_a_restart(
    seaweed: EmbeddedSeaweed, restart: Callable[[], EmbeddedSeaweed], lasting_home: Path
) -> None:
    """Stopping leaves no process, and a second stop does nothing; the next start finds everything again."""
    seaweed.stop()
    assert not of_home(lasting_home)
    seaweed.stop()
    again = restart()
    assert (again.endpoint, again.access_key, again.secret_key) == (
        seaweed.endpoint,
        seaweed.access_key,
        seaweed.secret_key,
    )
    assert not again.adopted


@pytest.mark.usefixtures("hostile_environment")
def test_a_store_that_outlived_its_parent_is_adopted(
    seaweed: EmbeddedSeaweed, restart: Callable[[], EmbeddedSeaweed], lasting_home: Path
) -> None:
    """After a SIGKILL of the parent the store goes on; the next start takes it over, and can stop it."""
    seaweed.stop()
    start_and_be_killed(lasting_home, "EmbeddedSeaweed")
    (survivor,) = of_home(lasting_home)
    adopted = restart()
    assert (adopted.adopted, adopted.pid) == (True, survivor.pid)
    adopted.stop()
    assert not of_home(lasting_home)
    restart()


def test_a_killed_store_keeps_what_it_acknowledged(
    seaweed: EmbeddedSeaweed, restart: Callable[[], EmbeddedSeaweed]
) -> None:
    """SIGKILL right after the answer loses nothing, and prevents no start."""
    os.kill(seaweed.pid, signal.SIGKILL)
    assert not restart().adopted


def test_a_store_that_hangs_is_replaced(
    seaweed: EmbeddedSeaweed, restart: Callable[[], EmbeddedSeaweed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leftover that does not answer is killed, not adopted."""
    monkeypatch.setattr("dreamforge.embedded.seaweed._ADOPT_TIMEOUT_S", 0.5)
    os.kill(seaweed.pid, signal.SIGSTOP)
    assert not restart().adopted


def test_taken_ports_are_replaced(seaweed: EmbeddedSeaweed, restart: Callable[[], EmbeddedSeaweed]) -> None:
    """The noted ports may by now be another program's; the objects do not depend on them."""
    os.kill(seaweed.pid, signal.SIGKILL)
    seaweed.stop()
    with socket.create_server(("127.0.0.1", int(seaweed.endpoint.split(":")[-1]))):
        assert restart().endpoint != seaweed.endpoint


def test_two_stores_run_side_by_side(seaweed: EmbeddedSeaweed, lasting_home: Path, home: Path) -> None:
    """No port is left to chance: each listens on its own ten, and on loopback alone."""
    other = EmbeddedSeaweed.start(home)
    ours, theirs = listening(lasting_home), listening(home)
    other.stop()
    assert len(ours) == len(theirs) == 10
    assert not ours & theirs
    assert {ip for ip, _ in ours | theirs} == {"127.0.0.1"}
    assert other.access_key != seaweed.access_key


def test_only_our_keys_open_it_and_no_command_line_shows_them(seaweed: EmbeddedSeaweed) -> None:
    """Being on this machine is not enough."""
    with (
        client(seaweed, aws_secret_access_key="guessed") as s3,
        pytest.raises(ClientError, match="SignatureDoesNotMatch"),
    ):
        s3.list_buckets()
    command = " ".join(psutil.Process(seaweed.pid).cmdline())
    assert seaweed.secret_key not in command
    assert seaweed.access_key not in command


def test_no_port_gives_an_object_away(seaweed: EmbeddedSeaweed, lasting_home: Path) -> None:
    """Given any page in a browser on this machine, whose requests bear no signature, then it reads nothing."""
    with client(seaweed) as s3:
        assert s3.get_object(Bucket="pictures", Key="kept")["Body"].read() == _PIXELS
    answers = []
    for host, port in listening(lasting_home):
        connection = http.client.HTTPConnection(host, port, timeout=10)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):  # gRPC
            connection.request("GET", "/buckets/pictures/kept")
            answers.append((connection.getresponse().status, port))
    assert {status for status, _ in answers} >= {401}
    assert 200 not in {status for status, _ in answers}


def test_without_its_package_the_way_out_is_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no wheel exists for a machine, an object store of the user's own is the answer."""

    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.files", missing)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(EmbeddedError, match="DF_S3_ENDPOINT, DF_S3_ACCESS_KEY and DF_S3_SECRET_KEY"):
        EmbeddedSeaweed.start(home)


def test_its_sockets_in_tmp_are_removed(seaweed: EmbeddedSeaweed, restart: Callable[[], EmbeddedSeaweed]) -> None:
    """The program makes some there whatever it is told; they go with it, killed or not."""
    sockets = [
        Path(connection.laddr)
        for connection in psutil.Process(seaweed.pid).net_connections("unix")
        if str(connection.laddr).startswith("/tmp")
    ]
    assert [path for path in sockets if path.exists()]
    os.kill(seaweed.pid, signal.SIGKILL)
    seaweed.stop()
    assert not [path for path in sockets if path.exists()]
    restart()
