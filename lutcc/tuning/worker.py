"""The process that builds or measures: ``python -m lutcc.tuning.worker``, started by the runner.

It answers pickled requests ``(number, method, arguments)`` of its parent, and of nobody else: they
come through a private pipe. What libraries print goes to stderr, which the parent has captured.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from lutcc.errors import LutccError
from lutcc.tuning.process import told

_F_SETSIG = 10  # Linux; Python has no name for it
_LONG_LOG = 1 << 20


def setup(options: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Bind this process to its cores, import TVM, and return (facts, who answers from now on)."""
    os.sched_setaffinity(0, options["cores"])
    from lutcc.codegen.tvm_setup import import_tvm
    from lutcc.runtime.ffi import torch_hidden

    with torch_hidden():  # TVM takes it along, a second and more
        import_tvm()
    if options["role"] == "build":
        from lutcc.tuning.building import Builder

        return {}, Builder(options["folder"])
    from lutcc.tuning.device import LocalDevice, RemoteDevice, facts
    from lutcc.tuning.measuring import Measurer

    if options["remote"] is None:
        return facts(), Measurer(LocalDevice())
    from lutcc.tuning.rpc import connect

    session, found = connect(options["remote"], threads=options["threads"])
    return found, Measurer(RemoteDevice(session))


def die_with_parent(lifeline: int) -> None:
    """Have the kernel kill this process when the writing end of a pipe is closed.

    Unlike a thread that reads the pipe this needs no lock of the interpreter, so it works in the
    midst of a build or of an endless kernel; unlike PR_SET_PDEATHSIG it does not fire when the one
    thread that started this process ends.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # it was closed before
        os._exit(1)


def printed() -> int:
    """Return how much has been printed to the log, which is emptied now and then."""
    sys.stdout.flush()
    sys.stderr.flush()
    size = os.fstat(sys.stderr.fileno()).st_size
    if size < _LONG_LOG:
        return size
    os.ftruncate(sys.stderr.fileno(), 0)
    return 0


def main(arguments: Sequence[str]) -> int:
    """Answer requests until the parent closes the pipe."""
    requests, answers, lifeline = (int(text) for text in arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(lifeline)
    for end in (requests, answers, lifeline):
        os.set_inheritable(end, False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # candidates crash; that needs no dump
    incoming = Connection(requests, writable=False)
    outgoing = Connection(answers, readable=False)
    actor: Any = None
    while True:
        try:
            number, method, given = pickle.loads(incoming.recv_bytes())
        except EOFError:
            return 0
        outgoing.send((number, "started", (time.monotonic(), printed())))
        try:
            if method == "setup":
                value, actor = setup(*given)
            else:
                value = getattr(actor, method)(*given)
            answer = (number, "value", value)
        except LutccError as error:
            answer = (number, "lutcc", error)
        except Exception as error:  # whatever a candidate raises: the parent logs it
            answer = (number, "error", told(error))
        outgoing.send(answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
