"""Normalisation: the synchronised BatchNorm, and everything that decides, converts and measures it.

layer.py          SyncBatchNorm, a drop-in for BatchNorm1d/2d/3d in several processes
kernels.py        the arithmetic it is made of, per device
fused_combine.py  the one Triton kernel (CUDA)
groups.py         the two collectives
local_exchange.py a quicker way for them between processes on one host
convert.py        convert_norm: exchange a model's normalisation layers, and change them back
choose.py         choose_norm: the rule behind `--norm auto`
running_stats.py  precise_bn and average_running_stats: running statistics equal on all ranks
disagreement.py   rank_disagreement: does this run need synchronised statistics at all?
"""

from .choose import NormChoice, choose_norm
from .convert import FrozenBatchNorm, NormError, convert_norm
from .disagreement import Disagreement, rank_disagreement
from .groups import exchange_locally
from .layer import SyncBatchNorm
from .running_stats import average_running_stats, precise_bn

__all__ = [
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
