"""Debian's own servers, on free loopback ports and Unix sockets, with data that is gone with them."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .processes import HOST, free_port, program


def find(name: str) -> str | None:
    """A server's program; Debian keeps some where no PATH points."""
    places = [*sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True), "/usr/sbin"]
    return shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", "")]))


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    port: int
    unix: Path  # its Unix socket, or the folder of that


def somebody(*names: str) -> str | None:
    """Whom to run a server as that refuses to be root: the first of these users that exists."""
    if os.geteuid() != 0:
        return None
    return next(name for name in names if any(entry.pw_name == name for entry in pwd.getpwall()))


@contextlib.contextmanager
def folder(owner: str | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="programs-", ignore_cleanup_errors=True) as name:
        if owner:
            shutil.chown(name, owner)
        yield Path(name)


@contextlib.contextmanager
def postgresql(certificate: Path) -> Iterator[Address]:
    """PostgreSQL with TLS; user and database `postgres`, no password."""
    owner, port = somebody("postgres", "nobody"), free_port()
    initdb, postgres = find("initdb"), find("postgres")
    assert initdb and postgres
    with folder(owner) as place:
        data = place / "data"
        with program(
            [
                initdb,
                "--no-sync",
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C",
                "-D",
                data,
            ],
            user=owner,
            folder=place,
        ) as making:
            assert making.wait() == 0, making.output()
        key = place / "server.pem"
        key.write_bytes(certificate.read_bytes())
        key.chmod(0o600)
        if owner:
            shutil.chown(key, owner)
        options = {
            "port": str(port),
            "listen_addresses": HOST,
            "unix_socket_directories": str(place),
            "fsync": "off",
            "shared_buffers": "16MB",
            "ssl": "on",
            "ssl_cert_file": str(key),
            "ssl_key_file": str(key),
        }
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        # SIGQUIT: at once, with all its children, whoever is connected.
        with program([postgres, "-D", data, *settings], user=owner, folder=place, at_death="QUIT") as server:
            server.wait_until(lambda: "ready to accept connections" in server.output())
            yield Address(port, place)
            server.process.send_signal(3)
            server.wait()


@contextlib.contextmanager
def redis() -> Iterator[Address]:
    port, binary = free_port(), find("redis-server")
    assert binary
    with folder(None) as place:
        unix = place / "redis.sock"
        command: list[str | Path] = [
            binary,
            "--port",
            str(port),
            "--bind",
            HOST,
            "--save",
            "",
            "--dir",
            place,
        ]
        with program([*command, "--unixsocket", unix]) as server:
            server.ready_on(port)
            yield Address(port, unix)


@contextlib.contextmanager
def mariadb() -> Iterator[Address]:
    """MariaDB; user `root` and database `test`, no password."""
    owner, port = somebody("mysql", "nobody"), free_port()
    binary, install = find("mariadbd"), find("mariadb-install-db")
    assert binary and install
    with folder(owner) as place:
        data, unix = place / "data", place / "socket"
        with program(
            [install, "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal"],
            user=owner,
            folder=place,
        ) as making:
            assert making.wait() == 0, making.output()
        options = [f"--datadir={data}", f"--port={port}", f"--bind-address={HOST}", f"--socket={unix}"]
        small = ["--innodb-buffer-pool-size=8M", "--innodb-log-file-size=4M", "--skip-name-resolve"]
        fast = ["--innodb-flush-log-at-trx-commit=0", "--pid-file=" + str(place / "pid")]
        with program(
            [binary, "--no-defaults", *options, *small, *fast], user=owner, folder=place, at_death="KILL"
        ) as server:
            server.ready_on(port)
            yield Address(port, unix)


@contextlib.contextmanager
def nginx(configuration: str, *, root: Path) -> Iterator[int]:
    """nginx with this in its `server` block, serving the files in `root`; its port."""
    port, binary = free_port(), find("nginx")
    assert binary
    with tempfile.TemporaryDirectory(prefix="programs-") as name:
        place = Path(name)
        temporary = "".join(
            f"{kind}_temp_path {place}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""
        (place / "nginx.conf").write_text(
            f"""
            {user} daemon off; worker_processes 1; pid {place}/pid; error_log stderr;
            events {{ worker_connections 512; }}
            http {{
              {temporary} access_log off; sendfile on;
              map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
              server {{ listen {HOST}:{port}; root {root}; {configuration} }}
            }}
            """
        )
        with program([binary, "-e", "stderr", "-p", place, "-c", place / "nginx.conf"]) as server:
            server.ready_on(port)
            yield port


def version(command: str) -> str | None:
    """What a server says its version is; None where it is not installed."""
    binary = find(command)
    if binary is None:
        return None
    said = subprocess.run(
        [binary, "-v" if command == "nginx" else "--version"], capture_output=True, text=True
    )
    words = (said.stdout + said.stderr).replace("/", " ").replace("=", " ").replace("-", " ").split()
    return next(word for word in words if word[0].isdigit() and "." in word)


def answers(path: Path) -> bool:
    """Whether somebody listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0
