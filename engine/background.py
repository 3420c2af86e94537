"""Writing files while the training goes on."""

import threading
from collections.abc import Callable

from engine.stop import StopRequest


class BackgroundWriter:
    """Does one piece of work at a time in a thread, in the order in which they are given.

    Args:
        stop: told that the process is busy, so that a signal doesn't end it in the middle.
    """

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work, after waiting for the one before.

        Raises:
            Exception: what the one before has raised.
        """
        self.join()
        self._thread = threading.Thread(target=self._run, args=(work,), name="writer")
        self._thread.start()

    def check(self) -> None:
        """Raise what the work has raised, if it has ended; waits for nothing."""
        if self._thread and not self._thread.is_alive():
            self.join()

    def join(self) -> None:
        """Wait until the work is done.

        Raises:
            Exception: what it has raised.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            with self._stop.busy():
                work()
        except BaseException as error:
            self._error = error
