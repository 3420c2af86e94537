"""How the processes of a job find each other, also after torchrun has restarted some of them.

torchrun keeps one store over all restarts of a job, and torch writes the addresses of its processes
there under the same keys each time: restarted processes read those of their dead predecessors and,
about every other time, wait for them for ever. A number that torchrun counts can't tell the
attempts apart, since each machine counts its own. So the processes agree on a part of the store
that nobody has used.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

SCHEME = "fresh"
POLL_SECONDS = 0.05


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
        store.wait([f"answer/{name}"], timeout)
        part = store.get(f"answer/{name}").decode()
        store.set(f"thanks/{part}/{rank}", "1")
        return dist.PrefixStore(part, store)
    part, deadline = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    missing = set(range(1, world_size))
    while missing:
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(missing)} of {world_size} did not come")
        for other in sorted(missing):
            if store.check([f"thanks/{part}/{other}"]):
                missing.remove(other)
            elif store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", part)
        time.sleep(POLL_SECONDS if missing else 0)
    return dist.PrefixStore(part, store)
