"""A Docker engine for the tests, its images, and compose on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parents[2]
STANDINS = Path(__file__).parent / "standins"
COMPOSE = PROJECT / "docker" / "compose.yaml"
BIN = Path(sys.executable).parent


class Unavailable(Exception):
    """Why there is no engine here."""


class Engine:
    """The engine that `DOCKER_HOST` or the host has; for root with a `dockerd`, one of our own in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._daemon: subprocess.Popen[bytes] | None = None
        self._offline = False  # whether a pull has failed
        self.environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        # A distribution's client has BuildKit built in; a client alone in another folder may not.
        self._docker = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else str(shutil.which("docker") or "")
        if not self._docker:
            raise Unavailable("no docker command; `make test-docker` installs one on Debian as root")
        if self.docker("info", check=False).returncode != 0:
            self._start()

    def _start(self) -> None:
        if os.geteuid() != 0 or shutil.which("dockerd") is None:
            raise Unavailable("no Docker engine answers, and only root with dockerd can start one")
        socket = self._folder / "docker.sock"
        flags = ["--data-root", str(self._folder / "data"), "--exec-root", str(self._folder / "exec")]
        flags += ["--pidfile", str(self._folder / "pid"), "-H", f"unix://{socket}", "--iptables=false"]
        flags += ["--ip6tables=false", "--bridge=none", "--storage-driver=overlay2"]
        log = (self._folder / "dockerd.log").open("wb")
        self._daemon = subprocess.Popen(["dockerd", *flags], stdout=log, stderr=log, start_new_session=True)
        self.environment["DOCKER_HOST"] = f"unix://{socket}"
        for _ in range(120):
            if self.docker("info", check=False).returncode == 0:
                return
            if self._daemon.poll() is not None:
                break
            time.sleep(0.5)
        raise Unavailable("dockerd does not start: " + (self._folder / "dockerd.log").read_text()[-500:])

    def docker(self, *arguments: str, check: bool = True, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
        """A command of docker's; `check`: it has to end well."""
        return _call([self._docker, *arguments], self.environment, check, timeout)

    def compose(self, *arguments: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """A command of compose's, on our file."""
        program = BIN / "docker-compose"
        start = [str(program)] if program.exists() else [self._docker, "compose"]
        return _call([*start, "--file", str(COMPOSE), *arguments], self.environment, check, timeout)

    def stop(self) -> None:
        """Take down what was started here."""
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(60)
            subprocess.run(
                ["umount", "--recursive", "--lazy", str(self._folder)], stderr=subprocess.DEVNULL, check=False
            )
            shutil.rmtree(self._folder, ignore_errors=True)

    # Images

    def provide_images(self) -> list[str]:
        """Have every image that the compose file names, and ours built from it; those that are stand-ins."""
        services = yaml.safe_load(COMPOSE.read_text())["services"]
        wanted = {name: service["image"] for name, service in services.items() if "build" not in service}
        base = re.search(r"^ARG PYTHON_IMAGE=(\S+)", (PROJECT / "docker" / "Dockerfile").read_text(), re.MULTILINE)
        assert base is not None
        missing = {name: image for name, image in wanted.items() if not self._has(image)}
        standing_in = []
        if missing or not self._has(base[1]):
            if self.docker("image", "inspect", "kdstudy-standin-base", check=False).returncode != 0:
                self._make_base(base[1])
            for name, image in missing.items():
                self.docker("build", "--network=host", "--tag", image, str(STANDINS / name))
            standing_in = [*missing.values(), base[1]]
        ours = services["head"]["image"].removeprefix("${KDSTUDY_IMAGE:-").removesuffix("}")
        self.docker("build", "--network=host", "-f", str(PROJECT / "docker" / "Dockerfile"), "-t", ours, str(PROJECT))
        return standing_in

    def _has(self, image: str) -> bool:
        if self.docker("image", "inspect", image, check=False).returncode == 0:
            return True
        if not self._offline:
            self._offline = self.docker("pull", "--quiet", image, check=False, timeout=900).returncode != 0
        return not self._offline

    def _make_base(self, python_image: str) -> None:
        """Debian with Python, and with the host's certificates and pip's settings, for hosts behind a proxy."""
        if shutil.which("debootstrap") is None:
            raise Unavailable("images cannot be pulled, and without debootstrap none can be made")
        root = self._folder / "base"
        packages = "ca-certificates,python3,python3-venv,python3-pip"
        mirror = "http://deb.debian.org/debian"
        _call(
            ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(root), mirror],
            self.environment, True, 900,
        )  # fmt: skip
        certificates = Path("/etc/ssl/certs/ca-certificates.crt")
        if certificates.exists():
            shutil.copy(certificates, root / "etc/ssl/certs/ca-certificates.crt")
        if Path("/etc/pip.conf").exists():
            shutil.copy("/etc/pip.conf", root / "etc/pip.conf")
        (root / "usr/bin/python").symlink_to("python3")
        archive = self._folder / "base.tar"
        _call(["tar", "-C", str(root), "-cf", str(archive), "."], self.environment, True, 300)
        certificate = "ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"
        self.docker("import", "--change", certificate, str(archive), "kdstudy-standin-base")
        self.docker("tag", "kdstudy-standin-base", python_image)
        archive.unlink()
        shutil.rmtree(root, ignore_errors=True)


def _call(
    command: list[str], environment: dict[str, str], check: bool, timeout: float
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done
