"""A quick all-gather for processes on one host: each writes to and reads from all others directly.

gloo hands a message from thread to thread on both sides, about a millisecond on busy cores, where
two processes that talk through a Unix socket need some thirty microseconds. Being system calls, the
exchanges need no assumption on how a processor orders memory, and a peer that dies is noticed at
once. Where the processes can't reach each other so (several hosts, Windows), there is none, and the
collectives remain gloo's.
"""

import os
import shutil
import socket
import struct
import tempfile
import weakref
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

# Sent without waiting for the peer to read, so it must fit into the sockets' buffers.
LARGEST_ROW_BYTES = 1 << 16
# Every process writes to every other one; beyond this gloo's ways are better.
MOST_RANKS = 8
HEADER = struct.Struct("=QQ")  # number of the exchange, bytes that follow
TIMEOUT_SECONDS = 1800  # gloo's


class LocalExchange:
    """Sockets to all other ranks of the world; made by `connect`."""

    def __init__(self, peers: dict[int, socket.socket]) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group = weakref.ref(dist.group.WORLD)
        self._peers, self._number = peers, 0
        limit = struct.pack("ll", TIMEOUT_SECONDS, 0)
        for peer in peers.values():
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        # A loader's worker would hold them open when this process has died.
        os.register_at_fork(after_in_child=self.close)

    def takes(self, row: Tensor, group: dist.ProcessGroup) -> bool:
        """Whether `gather` can be used; the same answer on all ranks, whose rows are alike."""
        fits = row.device.type == "cpu" and row.nbytes <= LARGEST_ROW_BYTES
        return fits and group is self._group()

    def gather(self, row: Tensor) -> Tensor:
        """Every rank's `row`, (K,), as one (ranks, K) tensor.

        Raises:
            RuntimeError: a peer has died or is silent, or calls for another exchange than this one.
        """
        rows = row.new_empty(self.size, row.numel())
        rows[self.rank] = row
        parts = [memoryview(part) for part in rows.view(torch.uint8).numpy()]
        header = HEADER.pack(self._number, row.nbytes)
        message = header + parts[self.rank]
        try:
            for peer in self._peers.values():
                peer.sendall(message)
            for rank, peer in self._peers.items():
                theirs = bytearray(HEADER.size)
                _receive(peer, memoryview(theirs))
                if theirs != header:
                    raise RuntimeError(
                        f"rank {rank} is at exchange {HEADER.unpack(theirs)} (number, bytes) and "
                        f"this rank at {HEADER.unpack(header)}: the ranks' programs differ."
                    )
                _receive(peer, parts[rank])
        except OSError as error:
            raise RuntimeError(
                f"Connection reset: a peer has ended or is silent ({error})."
            ) from None
        self._number += 1
        return rows

    def close(self) -> None:
        """Close the sockets."""
        for peer in self._peers.values():
            peer.close()


def _receive(peer: socket.socket, buffer: memoryview) -> None:
    """Fill the buffer; a signal can interrupt a call with a part of it."""
    while buffer:
        count = peer.recv_into(buffer, 0, socket.MSG_WAITALL)
        if not count:
            raise ConnectionError("closed by peer")
        buffer = buffer[count:]


def connect() -> LocalExchange | None:
    """Connect all ranks of the world with each other; None, on all of them, where that fails.

    Two collectives; every rank has to make the call.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    if not hasattr(socket, "AF_UNIX") or not 1 < world <= MOST_RANKS:
        return None
    folder = Path(tempfile.mkdtemp(prefix="exchange-"))  # nobody else's processes can enter it
    peers: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(str(folder / "listener"))
            listener.listen(world)
        except OSError:  # a path that is too long, a file system without sockets
            pass
        paths: list[str] = [""] * world
        dist.all_gather_object(paths, str(folder / "listener"))  # collective
        try:
            for other in range(rank):
                peers[other] = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                peers[other].connect(paths[other])
                peers[other].sendall(bytes([rank]))
            reached = True
        except OSError:
            reached = False
        everyone = [False] * world
        dist.all_gather_object(everyone, reached)  # collective
        if all(everyone):  # so the others' connections are waiting
            for _ in range(rank + 1, world):
                peer, _ = listener.accept()
                peers[peer.recv(1)[0]] = peer
    shutil.rmtree(folder, ignore_errors=True)
    if all(everyone):
        return LocalExchange(dict(sorted(peers.items())))
    for peer in peers.values():
        peer.close()
    return None
