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

# Of each direction of each connection. Systems give less than that (macOS has 8 KiB by default).
BUFFER_BYTES = 1 << 18
# A row is sent without waiting for the peer to read it, who may be one exchange behind: two rows
# have to fit into the buffers. Linux counts its own overhead too, up to as much again.
ROWS_PER_BUFFER = 4
# Every process writes to every other one; beyond this gloo's ways are better.
MOST_RANKS = 8
# Number of the exchange, number of the layer, bytes that follow, dtype.
HEADER = struct.Struct("=QQQ16s")


class LocalExchange:
    """Sockets to all other ranks of the world; made by ``connect``.

    Args:
        peers: the connection to every other rank.
        largest_row: bytes of the largest row to exchange, the same on all ranks.
        seconds: how long to wait for a peer that doesn't send, or doesn't read.
    """

    def __init__(self, peers: dict[int, socket.socket], largest_row: int, seconds: int) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group = weakref.ref(dist.group.WORLD)
        self._peers, self._largest_row, self._number = peers, largest_row, 0
        for peer in peers.values():
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                peer.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))
        _open.add(self)

    def takes(self, row: Tensor, group: dist.ProcessGroup) -> bool:
        """Whether ``gather`` can be used; the same answer on all ranks, whose rows are alike."""
        fits = row.device.type == "cpu" and row.nbytes <= self._largest_row
        return fits and group is self._group()

    def gather(self, row: Tensor, layer: int) -> Tensor:
        """Every rank's ``row``, (K,), as one (ranks, K) tensor.

        After an error the exchange is closed, on the other ranks too at their next call, because
        what was sent and not read would be taken for a later row.

        Args:
            row: as long on all ranks and of the same dtype.
            layer: number of the layer whose row it is.

        Raises:
            RuntimeError: a peer has ended or is silent, or is at another exchange than this rank.
        """
        rows = row.new_empty(self.size, row.numel())
        rows[self.rank] = row
        parts = [memoryview(part) for part in rows.view(torch.uint8).numpy()]
        header = HEADER.pack(self._number, layer, row.nbytes, str(row.dtype).encode())
        message = header + parts[self.rank]
        try:
            for peer in self._peers.values():
                peer.sendall(message)
            for rank, peer in self._peers.items():
                theirs = bytearray(HEADER.size)
                _receive(peer, memoryview(theirs))
                if theirs != header:
                    raise RuntimeError(
                        f"The ranks' programs differ: rank {rank} is at {_in_words(theirs)} and "
                        f"this rank at {_in_words(header)}."
                    )
                _receive(peer, parts[rank])
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise RuntimeError(
                    f"Connection reset: a peer has ended or is silent ({error})."
                ) from None
            raise
        self._number += 1
        return rows

    def close(self) -> None:
        """Close the sockets: a later ``gather`` raises, here and on the other ranks."""
        for peer in self._peers.values():
            peer.close()


# A forked process, such as a loader's worker, would hold the sockets open after this one has died.
# Registered once for all exchanges, because what is registered stays so.
_open: weakref.WeakSet[LocalExchange] = weakref.WeakSet()


def _close_all() -> None:
    for exchange in list(_open):
        exchange.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)


def _in_words(header: bytes) -> str:
    number, layer, size, dtype = HEADER.unpack(header)
    return f"exchange {number} (layer {layer}, {size} bytes of {dtype.rstrip(bytes(1)).decode()})"


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
    try:
        gloo = dist.group.WORLD._get_backend(torch.device("cpu"))
    except RuntimeError:  # a group of GPUs alone
        return None
    seconds = max(1, int(gloo.options._timeout.total_seconds()))
    folder = Path()
    peers: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            folder = Path(tempfile.mkdtemp(prefix="exchange-"))  # nobody else can enter it
            listener.bind(str(folder / "listener"))
            listener.listen(world)
            listener.settimeout(seconds)
        except OSError:  # a full disk, a path that is too long, a file system without sockets
            pass
        paths: list[str] = [""] * world
        dist.all_gather_object(paths, str(folder / "listener"))  # collective
        try:
            for other in range(rank):
                peers[other] = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                peers[other].connect(paths[other])
                peers[other].sendall(bytes([rank]))
            smallest = _enlarge_buffers(listener)
        except OSError:
            smallest = 0
        everyone = [0] * world
        dist.all_gather_object(everyone, smallest)  # collective
        if all(everyone):  # so the others' connections are waiting
            for _ in range(rank + 1, world):
                peer, _ = listener.accept()
                whose = bytearray(1)
                _receive(peer, memoryview(whose))
                peers[whose[0]] = peer
    if folder.is_absolute():
        shutil.rmtree(folder, ignore_errors=True)
    if all(everyone):
        for peer in peers.values():
            _enlarge_buffers(peer)
        largest_row = min(everyone) // ROWS_PER_BUFFER - HEADER.size
        return LocalExchange(dict(sorted(peers.items())), largest_row, seconds)
    for peer in peers.values():
        peer.close()
    return None


def _enlarge_buffers(peer: socket.socket) -> int:
    """Ask for ``BUFFER_BYTES`` in both directions; the bytes of the smaller one that came of it."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        peer.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    return min(
        peer.getsockopt(socket.SOL_SOCKET, option)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)
    )
