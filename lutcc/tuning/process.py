"""The parent's end of a process that builds or measures: started, asked, watched, killed."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from lutcc.errors import BackendError, LutccError
from lutcc.tuning.records import Status

_START_S = 120.0
_LAST_LINES = 3
_PREFIX = "lutcc-tuning-"
#: malloc keeps what LLVM frees: the next build needs it again.
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_TOP_PAD_": "67108864"}


class ChildFailed(Exception):
    """A request did not come to a good end; the child is dead unless it only raised."""

    def __init__(self, status: Literal["error"] | Status, message: str) -> None:
        self.status, self.message = status, message
        super().__init__(message)


class Child:
    """A process of ``lutcc.tuning.worker``; starts when first asked, and again after its death.

    It lives in a session of its own (Ctrl-C at the terminal does not reach it) and dies with this
    process, however that ends: it holds the reading end of a pipe that nobody writes to, and the
    kernel kills it when the writing end is gone.

    Parameters
    ----------
    role
        ``build`` or ``measure``; for messages.
    folder
        Private folder shared with the other children.
    options
        Given to the child's ``setup``.
    environment
        Added to this process's.
    """

    def __init__(
        self, role: str, folder: Path, options: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        self.role, self._folder = role, folder
        self._options, self._environment = dict(options), dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._ids = itertools.count()
        self.facts: dict[str, Any] = {}
        self.starts = 0

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start the process if it does not run, and do not wait for it."""
        if self.alive:
            return
        self.kill()
        self.starts += 1
        self._log = self._folder / f"{self.role}-{self.starts}.log"
        requests, to_child = os.pipe()
        from_child, answers = os.pipe()
        lifeline, self._life = os.pipe()
        given = (requests, answers, lifeline)
        environment = {
            **os.environ,
            **_MALLOC,
            **self._environment,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "lutcc.tuning.worker", *map(str, given)],
                pass_fds=given,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        for end in given:
            os.close(end)
        self._requests = Connection(to_child, readable=False)
        self._answers = Connection(from_child, writable=False)
        self._printed = 0
        self._setup: int | None = self.send("setup", self._options)

    def start(self) -> None:
        """Start the process if it does not run, and wait until it has imported TVM.

        Raises
        ------
        LutccError
            If that fails; what it was.
        """
        self.launch()
        if self._setup is None:
            return
        try:
            self.facts = self._answer(self._setup, _START_S)
        except LutccError:
            self.kill()
            raise
        except ChildFailed as failure:
            self.kill()
            raise BackendError(
                f"the process that is to {self.role} does not start: {failure.message}",
                where="lutcc.tuning",
                fix="run 'lutcc doctor'",
            ) from None
        self._setup = None

    def call(self, method: str, *arguments: Any, timeout: float) -> Any:
        """Ask for something and wait for the answer.

        Raises
        ------
        ChildFailed
            ``error``: it raised; ``timeout``; ``crash``: the process died.
        LutccError
            What the child raised on purpose.
        """
        return self._answer(self.send(method, *arguments), timeout)

    def _answer(self, number: int, timeout: float) -> Any:
        deadline = time.monotonic() + timeout
        while True:
            answered, kind, value = self.receive(max(0.0, deadline - time.monotonic()), timeout)
            if answered == number and kind != "started":
                return self.value(kind, value)

    def send(self, method: str, *arguments: Any) -> int:
        """Send a request without waiting; returns its number."""
        number = next(self._ids)
        data = pickle.dumps((number, method, arguments))
        try:
            self._requests.send_bytes(data)
        except OSError:
            raise ChildFailed("crash", self._post_mortem()) from None
        return number

    def receive(self, wait: float, limit: float) -> tuple[int, str, Any]:
        """Return the next answer: number of the request, kind, value (of ``started``: when).

        A child that does not answer within ``wait`` seconds is killed: it has had ``limit``. So is
        one whose parent is interrupted meanwhile, as nobody will read its answer.
        """
        try:
            if not self._answers.poll(wait):
                self.kill()
                raise ChildFailed("timeout", f"no answer within {limit:g} s")
            number, kind, value = pickle.loads(self._answers.recv_bytes())
        except (EOFError, OSError):
            raise ChildFailed("crash", self._post_mortem()) from None
        except KeyboardInterrupt:
            self.kill()
            raise
        if kind == "started":
            value, self._printed = value
        return number, kind, value

    def waiting(self) -> bool:
        """Whether an answer can be read at once (or the child has died)."""
        return self._answers.poll(0)

    @staticmethod
    def value(kind: str, value: Any) -> Any:
        """Return the value of an answer, or raise what it tells."""
        if kind == "lutcc":
            raise value
        if kind == "error":
            raise ChildFailed("error", value)
        return value

    def _post_mortem(self) -> str:
        """Tell how the process died, and the last lines that it (or a library) printed."""
        process = self._process
        if process is None:
            return "the process is gone"
        try:
            code = process.wait(5)
        except subprocess.TimeoutExpired:
            code = 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        text = self._log.read_bytes()[self._printed :].decode(errors="replace")
        lines = text.strip().splitlines()
        self.kill()
        return ": ".join([how, *(line.strip()[:200] for line in lines[-_LAST_LINES:])])

    def kill(self) -> None:
        """End the process, and what it has started, at once."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._requests.close()
        self._answers.close()
        os.close(self._life)
        self._log.unlink(missing_ok=True)


def told(error: BaseException) -> str:
    r"""Return the last telling line of an error.

    Examples
    --------
    >>> told(ValueError("a\nb"))
    'ValueError: b'
    """
    if isinstance(error, LutccError):
        return f"{error.where}: {error.what}" if error.where else error.what
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def private_folder() -> tuple[Path, Any]:
    """Return a new folder for the processes' files, and a lock that tells it is in use.

    Folders of runners that were killed are removed: nobody holds their locks.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), open(old / "lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = open(folder / "lock", "wb")  # noqa: SIM115 (held as long as the runner lives)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "lock").exists():  # nobody took it for abandoned before it was locked
            return folder, lock
        lock.close()
