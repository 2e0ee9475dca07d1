"""Stages of embedded profiles without the seconds that importing the libraries takes.

`repro` starts one process that has imported them.  Where `python -m workbook STAGE KEY` finds its socket in the
environment, it hands over its arguments, environment and output, and waits; the server forks a process that runs the
stage.  Without a server a stage runs by itself, and does the same.

Of this project only the packages' `__init__`, with what they import, is loaded before the fork: each stage reads the
code as it is when it begins.
"""

import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys

VARIABLE = "WORKBOOK_FORK_SERVER"
LIBRARIES = (
    "torch",
    "transformers.trainer",
    "transformers.models.llava.modeling_llava",
    "peft",
    "accelerate",
    "pandas",
    "scipy.stats",
    "sklearn.linear_model",
    "pydantic",
    "typer",
    "jupytext",
    "papermill",
)


def handed_over() -> int | None:
    """Let a server run this command, if there is one: its exit status, None if it has to be run here."""
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError:  # it has ended
        return None
    request = {"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}
    data = json.dumps(request).encode()
    socket.send_fds(connection, [len(data).to_bytes(4, "big")], [1, 2])  # standard output and error
    connection.sendall(data)
    status = connection.recv(4)
    return int.from_bytes(status, "big") if status else 1


def serve(path: str) -> None:
    """Import the libraries, then fork a process for every command that comes, until the process that started this ends.

    Says "ready" on its output before it serves.
    """
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(64)
    for library in LIBRARIES:
        importlib.import_module(library)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes of connections
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([server, sys.stdin], [], [])
        if sys.stdin in readable:  # its other end is closed
            return
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            _answer(connection)
        connection.close()


def _answer(connection: socket.socket) -> None:
    """Run one command in a process of its own; end it if the one that waits for it goes."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    header, outputs, _, _ = socket.recv_fds(connection, 4, 2)
    request = json.loads(connection.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL))
    alive, ended = os.pipe()
    stage = os.fork()
    if stage == 0:
        connection.close()
        os.close(alive)
        for file, output in enumerate(outputs, 1):
            os.dup2(output, file)
        sys.stdout, sys.stderr = (os.fdopen(file, "w", buffering=1, closefd=False) for file in (1, 2))
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        del os.environ[VARIABLE]
        sys.argv = ["workbook", *request["arguments"]]
        sys.path.insert(0, os.getcwd())
        runpy.run_module("workbook", run_name="__main__", alter_sys=True)
        sys.exit(0)
    os.close(ended)
    readable, _, _ = select.select([alive, connection], [], [])
    if connection in readable:
        os.kill(stage, signal.SIGTERM)
    status = os.waitstatus_to_exitcode(os.waitpid(stage, 0)[1])
    if connection not in readable:
        connection.sendall((status if status >= 0 else 128 - status).to_bytes(4, "big"))
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
