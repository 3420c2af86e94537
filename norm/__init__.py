"""Batch normalisation across processes: the layer, and what chooses, converts and measures it.

The folder imports torch and nothing else of the repository it lies in (timm and Triton only where
they are installed): copied into another project, under any name, it works.

To read it, begin with the layer and follow a batch through it:

1. ``layer.py``: ``SyncBatchNorm``, a drop-in for BatchNorm1d/2d/3d in several processes.
2. ``kernels.py``: the arithmetic between its two collectives, per device.
3. ``fused.py``: the Triton kernels among it (CUDA); ``cpu.py``: cheaper calls for the CPU.
4. ``groups.py``: the two collectives.
5. ``local_exchange.py``: a quicker way for them between processes of one host.
6. ``convert.py``: ``convert_norm`` exchanges a model's normalisation layers, and changes them back.
7. ``choose.py``: ``choose_norm`` decides which normalisation a model and a launch need.
8. ``running_stats.py``: running statistics that are equal on all ranks.
9. ``disagreement.py``: ``rank_disagreement`` measures whether a run needs synchronised statistics.
"""

from .choose import NormChoice, choose_norm
from .convert import FrozenBatchNorm, NormError, convert_norm
from .disagreement import Disagreement, rank_disagreement
from .groups import COMPILE_OPTIONS, exchange_locally
from .layer import SyncBatchNorm
from .running_stats import average_running_stats, precise_bn

__all__ = [
    "COMPILE_OPTIONS",
    "Disagreement",
    "FrozenBatchNorm",
    "NormChoice",
    "NormError",
    "SyncBatchNorm",
    "average_running_stats",
    "choose_norm",
    "convert_norm",
    "exchange_locally",
    "precise_bn",
    "rank_disagreement",
]
