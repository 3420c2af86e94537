"""Signals: finish the step, save, exit; never hang on a peer that has died.

Slurm and spot machines send SIGTERM, Ctrl-C sends SIGINT, and torchrun sends SIGTERM to the
survivors when a process of the job has failed. The death of torchrun itself counts as SIGTERM:
its processes would go on unattended. The first signal asks the training loop to stop at the next
step boundary, where all processes agree on it. A survivor of a dead peer never reaches that
boundary: it is blocked in a collective, where Python's signal handlers don't run. So signals are
received by a thread (``signal.set_wakeup_fd`` writes to a pipe from the C handler), which ends the
process when the loop has shown no sign of life for a while.
"""

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import psutil

from errors import UserError

# A terminal's Ctrl-C reaches a process twice: from the terminal and from the launcher.
SAME_SIGNAL_SECONDS = 2.0
SHORTEST_GRACE_SECONDS = 15.0
GONE = -1  # in place of a launcher that has died
# Set when a StopRequest watches the launcher.
_watched = threading.Event()
# How soon a process notices that its launcher is gone, and a loader's worker that its process is.
PARENT_SECONDS = 1.0


class StopRequest:
    """Whether this process was asked to stop, and a watch that it does."""

    def __init__(self) -> None:
        self.signum = 0
        self.error: UserError | None = None
        self._asked_at = 0.0
        self._last_beat = time.monotonic()
        self._longest_beat = 0.0
        self._closed = False
        self._busy, self._lock = 0, threading.Lock()

    def install(self) -> "StopRequest":
        """Receive SIGTERM and SIGINT from now on (main thread only)."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        # The handlers themselves do nothing: they exist so that the wake-up pipe is written.
        self._before = {
            signum: signal.signal(signum, lambda *_: None)
            for signum in (signal.SIGTERM, signal.SIGINT)
        }
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._pipe = (reader, writer)
        self._agent = launcher()
        _watched.set()
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def close(self) -> None:
        """Leave signals as they were before ``install``."""
        signal.set_wakeup_fd(-1)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._closed = True

    def fail(self, error: UserError) -> None:
        """Stop as if by SIGTERM for an error of this process alone, such as a file it can't read.

        So the processes stop together and save before ``error`` is raised.
        """
        self.error = self.error or error
        self._receive(signal.SIGTERM)

    def beat(self) -> None:
        """A sign of life: call it at every step and evaluation batch."""
        now = time.monotonic()
        self._longest_beat = max(self._longest_beat, now - self._last_beat)
        self._last_beat = now

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Work that may take long without a sign of life, such as saving; the watch pauses.

        For any thread.
        """
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
            self._last_beat = time.monotonic()

    def _watch(self) -> None:
        reader = self._pipe[0]
        reader.settimeout(0.5)
        while not self._closed:
            try:
                received = reader.recv(16)
            except TimeoutError:
                received = b""
            for signum in received:  # among them those of dead loader workers, SIGCHLD
                if signum in (signal.SIGTERM, signal.SIGINT):
                    self._receive(signum)
            if self._agent and os.getppid() != self._agent and not self.signum:
                self._receive(signal.SIGTERM)
            grace = max(SHORTEST_GRACE_SECONDS, 3 * self._longest_beat)
            silence = time.monotonic() - max(self._last_beat, self._asked_at)
            if self.signum and not self._busy and silence > grace:
                self._exit("no step finished since; another process of the job may have died")

    def _receive(self, signum: int) -> None:
        now = time.monotonic()
        if self.signum and not self.error and now - self._asked_at > SAME_SIGNAL_SECONDS:
            self._exit("asked twice")
        if not self.signum:
            self.signum, self._asked_at = signum, now

    def _exit(self, why: str) -> None:
        name = signal.Signals(self.signum).name
        print(f"Stopped at once by {name}: {why}.", file=sys.stderr, flush=True)
        os._exit(128 + self.signum)


def end_with_the_launcher() -> None:
    """Until a StopRequest watches, end this process when its launcher dies: nothing is to be saved.

    Processes that wait for each other at the store of a dead launcher would wait for half an hour.
    """
    agent = launcher()
    if agent is not None:
        threading.Thread(target=_watch_launcher, args=(agent,), daemon=True).start()


def _watch_launcher(agent: int) -> None:
    while not _watched.wait(PARENT_SECONDS):
        if os.getppid() != agent:
            print("Stopped: the launcher of this process has ended.", file=sys.stderr, flush=True)
            os._exit(1)


def _is_python(process: int) -> bool:
    """Whether a process could be a launcher, as torchrun is in a container of its own."""
    with contextlib.suppress(psutil.Error):
        return any(
            "python" in word or "torchrun" in word for word in psutil.Process(process).cmdline()
        )
    return True


@functools.cache
def launcher() -> int | None:
    """The process without which nobody would end or restart this one, or None.

    To be asked early: a launcher that has died by then can't be told from one that never was.
    """
    parent = os.getppid()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's agent, or it has died already
        return GONE if parent == 1 and not _is_python(parent) else parent
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return None
    # "accelerate launch" of one process; others may have inherited its variables.
    with contextlib.suppress(psutil.Error):
        words = psutil.Process(parent).cmdline()
        if "launch" in words and any("accelerate" in word for word in words):
            return parent
        if any(os.path.basename(word) == "accelerate-launch" for word in words):
            return parent
    return None


def leave_signals_to_the_loop(_worker_id: int) -> None:
    """``worker_init_fn`` of every loader: the loop, not a signal, decides when its workers end.

    Ctrl-C and Slurm signal every process of the job, and a loop whose workers die can't finish its
    step. SIGTERM from the loop's own process still ends a worker, as multiprocessing expects, and
    so does that process's death.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()
    threading.Thread(target=_end_with_the_parent, args=(parent,), daemon=True).start()


def _end_with_the_parent(parent: int) -> None:
    while os.getppid() == parent:
        if hasattr(signal, "sigtimedwait"):
            received = signal.sigtimedwait({signal.SIGTERM}, PARENT_SECONDS)
            if received and received.si_pid == parent:
                break
        elif signal.SIGTERM in signal.sigpending():  # macOS doesn't tell who sent it
            break
        else:
            time.sleep(PARENT_SECONDS)
    os._exit(0)
