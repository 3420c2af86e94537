"""Tasks that Slurm or MPI has started without a launcher become the processes of one training.

``srun -n 2 python train_x.py`` and ``mpirun -n 2 python train_x.py`` start the script twice and
tell each its number in variables of their own. Here they become those that torchrun sets.
"""

import re
from collections.abc import MutableMapping

import psutil

from errors import UserError

Environment = MutableMapping[str, str]

# The variables of OpenMPI, and of MPICH and Intel MPI: rank, size, local rank, local size.
MPI = (
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
PROXY = "hydra_pmi_proxy"
FIRST_PORT, PORTS = 20000, 20000  # below those that systems hand out


def join_tasks(environment: Environment) -> None:
    """Set RANK, WORLD_SIZE and so on from Slurm's or MPI's variables, where no launcher has.

    The first task says so.

    Raises:
        UserError: the address of the first machine is needed, and nobody gives it.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return
    # Variables of a step, which a batch script's own process doesn't have.
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        rank, size = int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"])
        per_node = _tasks_per_node(
            environment.get("SLURM_STEP_TASKS_PER_NODE") or environment["SLURM_TASKS_PER_NODE"]
        )
        local_rank = int(environment["SLURM_LOCALID"])
        local_size = per_node[int(environment["SLURM_NODEID"])]
        job = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_STEP_ID", "")
        first = _first_host(environment["SLURM_STEP_NODELIST"]) if len(per_node) > 1 else None
    else:
        names = next((names for names in MPI if names[0] in environment), None)
        if names is None or int(environment.get(names[1], 1)) == 1:
            return
        if not all(name in environment for name in names):
            raise UserError(
                f"This is one of {environment[names[1]]} tasks of MPI, which doesn't say how many "
                "are on this machine: start them with torchrun --nproc_per_node=N or accelerate "
                "launch --num_processes N instead."
            )
        rank, size, local_rank, local_size = (int(environment[name]) for name in names)
        # MPICH names no job.
        name = environment.get("PMIX_NAMESPACE") or (_proxy() if local_size == size else "")
        job, first = (name, str(size)), None
        if local_size < size and "MASTER_ADDR" not in environment:
            raise UserError(
                f"The {size} tasks of MPI are on several machines: give them the first machine's "
                "address, by mpirun -x MASTER_ADDR=10.0.0.1 or -genv MASTER_ADDR 10.0.0.1."
            )
    number = sum(ord(letter) * 31**place for place, letter in enumerate("/".join(job)))
    environment |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": environment.get("MASTER_ADDR", first or "127.0.0.1"),
        "MASTER_PORT": environment.get("MASTER_PORT", str(FIRST_PORT + number % PORTS)),
    }
    environment.setdefault("OMP_NUM_THREADS", "1")
    if rank == 0:  # before it waits, perhaps for tasks that nobody starts (srun --pty bash)
        print(
            f"Task 0 of {size}, joining the others. Set WORLD_SIZE=1 and RANK=0 to train alone.",
            flush=True,
        )


def _proxy() -> str:
    """The process from which MPICH starts all tasks on a machine; "" where there is none."""
    above = psutil.Process().parents()
    return next((str(each.pid) for each in above if each.name().startswith(PROXY)), "")


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's "2(x3),1" is [2, 2, 2, 1]."""
    tasks = []
    for part in text.split(","):
        count, times = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part).groups()
        tasks += [int(count)] * int(times or 1)
    return tasks


def _first_host(nodes: str) -> str:
    """The first of Slurm's "gpu[07-09,12],login1" is gpu07."""
    name, numbers = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes).groups()
    return name + (numbers or "")
