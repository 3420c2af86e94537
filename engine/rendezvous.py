"""How the processes of a job find each other, also after torchrun has restarted some of them.

torchrun keeps one store over all restarts of a job, and torch writes the addresses of its processes
there under the same keys each time: restarted processes read those of their dead predecessors and,
about every other time, wait for them for ever. A number that torchrun counts can't tell the
attempts apart, since each machine counts its own. So the processes agree on a part of the store
that nobody has used.
"""

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

SCHEME = "fresh"
POLL_SECONDS = 0.05
# Then a process that still waits for the others says so.
SECONDS_OF_SILENCE = 60


def rendezvous_url() -> str:
    """The ``init_method`` of ``init_process_group`` by which the processes find each other."""
    with contextlib.suppress(RuntimeError):  # registered before
        dist.register_rendezvous_handler(SCHEME, _rendezvous)
    return f"{SCHEME}://"


def _rendezvous(
    url: str, timeout: timedelta = dist.default_pg_timeout, **_: object
) -> Iterator[tuple]:
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    if "TORCHELASTIC_RESTART_COUNT" in os.environ:
        store = fresh_part(store, rank, world_size, timeout)
    yield store, rank, world_size


def fresh_part(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """A part of a store that only the callers of now share, whatever is left of earlier ones.

    Every process announces itself under a random name. Rank 0 answers each name that it finds with
    the part to use, until all living processes have confirmed. It may also answer names that dead
    processes left behind; nobody reads those answers.

    Raises:
        TimeoutError: not all processes came.
    """
    if rank:
        name = uuid.uuid4().hex
        store.set(f"hello/{rank}", name)
        try:
            store.wait([f"answer/{name}"], min(timeout, timedelta(seconds=SECONDS_OF_SILENCE)))
        except RuntimeError:  # dist.DistStoreError is one
            _say_that_it_waits([0], world_size)
            store.wait([f"answer/{name}"], timeout)
        part = store.get(f"answer/{name}").decode()
        store.set(f"thanks/{part}/{rank}", "1")
        return dist.PrefixStore(part, store)
    part, begun = uuid.uuid4().hex, time.monotonic()
    deadline, silent = begun + timeout.total_seconds(), True
    missing = set(range(1, world_size))
    while missing:
        if silent and time.monotonic() - begun > SECONDS_OF_SILENCE:
            silent = False
            _say_that_it_waits(sorted(missing), world_size)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(missing)} of {world_size} did not come")
        for other in sorted(missing):
            if store.check([f"thanks/{part}/{other}"]):
                missing.remove(other)
            elif store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", part)
        time.sleep(POLL_SECONDS if missing else 0)
    return dist.PrefixStore(part, store)


def _say_that_it_waits(missing: list[int], world_size: int) -> None:
    """Name the cause that isn't plain to see.

    When machines of an elastic job meet again in another order, torch's agents can tell their
    processes the addresses of two different stores.
    """
    print(
        f"Still waiting for process {', '.join(map(str, missing))} of {world_size}. If machines "
        "have left and joined, start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its "
        "environment on each of them (docs/scaling.md).",
        file=sys.stderr,
        flush=True,
    )
