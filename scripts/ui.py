"""Prefect server, MLflow server and a served retrain deployment, until Ctrl-C: ``make ui``.

A server that you name yourself (PREFECT_API_URL, or MLFLOW_TRACKING_URI with http) is used as it
is and not started here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

HOST = "127.0.0.1"
LOGS = Path(".aaft/ui")
PATIENCE = 180.0  # seconds; a first start makes databases


class Servers:
    """Child processes, each in a process group of its own so that none survives."""

    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> None:
        """Start ``python -m``/``-c`` with output to a log file."""
        with Path(LOGS, f"{name}.log").open("wb") as log:
            self._children[name] = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Exit with the reason when a child is gone."""
        for name, child in self._children.items():
            if child.poll() is not None:
                sys.exit(f"{name} stopped (exit code {child.returncode}): see {LOGS}/{name}.log")

    def wait_for(self, url: str) -> None:
        """Return when ``url`` answers."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.check()
            try:
                with urllib.request.urlopen(url, timeout=5):  # noqa: S310 (an http address)
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        sys.exit(f"{url} did not answer within {PATIENCE:.0f} s: see {LOGS}/")

    def stop(self) -> None:
        """Ask every group to end; kill what is left after ten seconds."""
        for child in reversed(self._children.values()):
            _signal(child, signal.SIGTERM)
        deadline = time.monotonic() + 10
        for child in self._children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.1, deadline - time.monotonic()))
            # The leader may be gone before its workers.
            _signal(child, signal.SIGKILL)


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def free_port(variable: str) -> str:
    """The port named by an environment variable, if nothing listens there."""
    port = os.environ[variable]
    with socket.socket() as probe:
        if probe.connect_ex((HOST, int(port))) == 0:
            sys.exit(f"port {port} is in use: make ui {variable}=another")
    return port


def start_prefect(servers: Servers) -> str:
    """Address of the Prefect API."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    port = free_port("PREFECT_PORT")
    url = f"http://{HOST}:{port}/api"
    # The server's web page must know its own address, and so must the deployment.
    os.environ["PREFECT_API_URL"] = url
    servers.start("prefect", "-m", "prefect", "server", "start", "--host", HOST, "--port", port)
    return url


def start_mlflow(servers: Servers) -> str:
    """Address of the MLflow server."""
    store = os.environ["MLFLOW_TRACKING_URI"]
    if store.startswith(("http://", "https://")):
        return store
    port = free_port("MLFLOW_PORT")
    # Its job runner is for scoring traces: seven processes that nothing here uses.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    artifacts = Path(".aaft/mlflow/artifacts").resolve().as_uri()
    servers.start(
        *("mlflow", "-m", "mlflow", "server", "--host", HOST, "--port", port, "--workers", "1"),
        *("--backend-store-uri", store, "--default-artifact-root", artifacts),
    )
    return f"http://{HOST}:{port}"


def main() -> None:
    """Start, print the addresses, wait for Ctrl-C."""
    LOGS.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    servers = Servers()
    try:
        print("starting the servers ...", flush=True)
        mlflow = start_mlflow(servers)
        prefect = start_prefect(servers)
        servers.wait_for(f"{mlflow}/health")
        servers.wait_for(f"{prefect}/health")
        servers.start("deployment", "-m", "flows.serve")
        print(f"Prefect     {prefect.removesuffix('/api')}")
        print(f"MLflow      {mlflow}")
        print("deployment  retrain/retrain: start it in Prefect, or with")
        print(f"            PREFECT_API_URL={prefect} prefect deployment run retrain/retrain")
        print(f"logs        {LOGS}/", "Ctrl-C stops all.", sep="\n", flush=True)
        while True:
            servers.check()
            time.sleep(1)
    except KeyboardInterrupt:
        print("\nstopping ...", flush=True)
    finally:
        servers.stop()


if __name__ == "__main__":
    main()
