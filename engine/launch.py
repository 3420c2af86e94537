"""Starting a script: who runs it, on which device, and how its errors end the job.

``accelerate launch``, ``torchrun`` and plain ``python`` all arrive here. Checks come before any
work, and each refusal is one sentence that says what to type instead.
"""

import contextlib
import errno
import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from engine.cluster import join_tasks
from engine.command_line import Given, parse
from engine.fields import Options
from engine.options import CommonOptions
from engine.run_folder import continues, refuse_other_run
from engine.stop import end_with_the_launcher
from errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

Result = TypeVar("Result")

# A process that fails because a peer has died waits this long, so that the launcher sees and
# reports the peer's own error, and ends this process, first.
SECONDS_FOR_THE_FIRST_ERROR = 5.0
# What "accelerate launch" turns on by a variable, by its name and why it can't be.
OTHER_WAYS = {
    "ACCELERATE_USE_DEEPSPEED": ("The launch asks for DeepSpeed", "it shards what they save whole"),
    "ACCELERATE_USE_MEGATRON_LM": ("The launch asks for Megatron-LM", "it is for transformers"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "The launch asks for a parallelism_config",
        "they split batches only",
    ),
}
# What a path on a user's system can be wrong with.
USERS_ERRORS = {
    getattr(errno, name)
    for name in (
        *("ENAMETOOLONG", "EACCES", "EPERM", "ENOSPC", "EDQUOT", "EROFS", "EIO", "ENOTDIR"),
        *("EISDIR", "ELOOP", "ESTALE", "ENXIO", "ENODEV"),
    )
    if hasattr(errno, name)
}
# torch's words when a worker or its process can't get shared memory.
NO_SHARED_MEMORY = (
    "is killed by signal: Bus error",
    "out of shared memory",
    "No space left on device: '/torch_",
    "unable to write to file </torch_",
    "unable to allocate shared memory",
)


def read_options(options_class: type[Given], description: str) -> Given:
    """Read the options, at the top of a script.

    A mistake in them, or an output folder that holds another run, ends the process with one
    sentence. Only the first process prints.
    """
    end_with_the_launcher()
    try:
        join_tasks(os.environ)  # before the first question for the rank
    except UserError as error:
        _fail(str(error), 2)
    if _rank() != 0:
        logging.disable(logging.WARNING)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it lives as long as the process)

    def read() -> Given:
        options = parse(options_class, description)
        trains = isinstance(options, CommonOptions) and not options.check_data
        if trains and options.output_dir and not continues(options):
            refuse_other_run(Path(options.output_dir))
        return options

    return _guarded(read)


def run(main: Callable[[Given], int], options: Given) -> None:
    """Run a script's ``main`` and end the process with the exit status that it returns.

    A UserError ends it with status 2 and one sentence, any other error with status 1 and a
    traceback. The error is also written to the file that torchrun and ``accelerate launch`` read,
    so that the first failing process's error is the last thing on the screen.
    """
    sys.exit(_guarded(lambda: main(options)))


def _guarded(call: Callable[[], Result]) -> Result:
    try:
        return call()
    except UserError as error:
        # A sample's error is one process's own, an option's every process's.
        _wait_for_others(is_own_error=_rank() == 0 or not _all_raise(error))
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("Interrupted.", 130)
    except Exception as error:
        if _peer_died(error):
            _wait_for_others(is_own_error=False)
            _fail(f"Process {_rank()} ends because another process of the job has ended.", 1)
        if sentence := _sentence_for(error):
            _fail(sentence, 2)
        _fail(traceback.format_exc(), 1)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _wait_for_others(is_own_error: bool) -> None:
    """Every process meets a mistake in the options; only the first should report it."""
    if not is_own_error:
        time.sleep(SECONDS_FOR_THE_FIRST_ERROR)


def _all_raise(error: UserError) -> bool:
    from data.decode import SampleError

    return not isinstance(error, SampleError)


def _peer_died(error: Exception) -> bool:
    """Whether a collective failed because the other side is gone, whose own error says why."""
    import torch.distributed as dist

    if isinstance(error, ConnectionError):
        return True
    return isinstance(error, dist.DistError | RuntimeError) and any(
        sign in str(error)
        for sign in (
            "Connection closed by peer",
            "Connection reset",
            "Broken pipe",
            "remote process exited",
        )
    )


def _sentence_for(error: Exception) -> str:
    """What to say of an error that is the system's rather than the script's, or ""."""
    if isinstance(error, OSError) and error.filename and error.errno in USERS_ERRORS:
        return f"{error.filename}: {error.strerror}; check this path, its permissions and its disk."
    if "Could not determine home directory" in str(error):  # of Path.expanduser
        return "A path begins with ~ and the name of a user whom this system doesn't know."
    if any(sign in str(error) for sign in NO_SHARED_MEMORY):
        return (
            "Shared memory is full, through which the loader's workers pass their samples: start "
            "the container with --ipc=host or --shm-size=8g, or use --num_workers 0."
        )
    return ""


def _fail(message: str, status: int) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file:
        with contextlib.suppress(OSError), open(error_file, "w") as file:
            json.dump({"message": message, "timestamp": int(time.time())}, file)
    sys.stdout.flush()
    # Not sys.exit: tearing down a process group whose peers are gone can block for minutes.
    os._exit(status)


def create_accelerator(options: Options) -> "Accelerator":
    """Choose the device and join the other processes.

    Without a CUDA device the processes of a multi-GPU launch form one gloo group. Accelerate alone
    would start as many independent trainings as there are processes.

    Returns:
        An ``accelerate.Accelerator`` with a TensorBoard tracker.

    Raises:
        UserError: more processes than GPUs, a precision that the device doesn't have, or what
            ``options.check_launch`` refuses.
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.utils import ProjectConfiguration

    from engine.randomness import set_deterministic
    from engine.rendezvous import rendezvous_url

    if not isinstance(options, Options):  # its number, from accelerate's TPU launcher
        _fail("The launch asks for a TPU; these scripts run on CUDA devices and on the CPU.", 2)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    use_cpu = options.cpu or not torch.cuda.is_available()
    gpus = torch.cuda.device_count()
    if not use_cpu and local_processes > gpus:
        own = ", or srun with --gpu-bind=none, so that each task sees the GPUs of all"
        raise UserError(
            f"{local_processes} processes were launched on a machine with {gpus} GPU"
            f"{'s' if gpus > 1 else ''}; launch with --num_processes {gpus}"
            f"{own if 'SLURM_STEP_NUM_TASKS' in os.environ else ''}, or add --cpu to the script's "
            "options to run the processes on the CPU."
        )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if use_cpu and precision in ("fp16", "fp8"):
        raise UserError(
            f"Mixed precision {precision} needs a GPU; launch with --mixed_precision no or bf16."
        )
    if precision == "bf16" and not use_cpu and not torch.cuda.is_bf16_supported():
        raise UserError("This GPU has no bfloat16; launch with --mixed_precision fp16 or no.")
    refuse_launcher_s_ways(os.environ)
    options.check_launch(world_size, use_cpu, precision)
    fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if fsdp and not use_cpu:
        raise UserError(
            "FSDP shards the weights, which this script keeps and saves whole; launch it with "
            "accelerate_configs/2gpu.yaml (DistributedDataParallel) instead."
        )

    set_deterministic(options.deterministic)
    # Its successor, forward_sync_buffers, doesn't exist in torch 2.11.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    accelerator = Accelerator(
        cpu=use_cpu,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=".", logging_dir="."),
        # Each process moves its own batches and the loss is already a global mean.
        gradient_accumulation_steps=1,
        kwargs_handlers=[
            # Synchronised buffers agree by construction and plain BatchNorm's are averaged before
            # they are used, so DDP's broadcast at every forward pass would be pure cost.
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(init_method=rendezvous_url()),
        ],
    )
    if use_cpu and not options.cpu and torch.backends.mps.is_available():
        accelerator.print("Apple's GPU is not used (no float64, no tests there): on the CPU.")
    if use_cpu and world_size > 1 and (fsdp or not options.cpu):
        why = "As --cpu says" if options.cpu else "No GPU here"
        trains = isinstance(options, CommonOptions)
        together = "train one model together" if trains else "share the inputs"
        whole = ", each with all of its weights: FSDP is left out" if fsdp else ""
        accelerator.print(f"{why}: {world_size} processes {together} on the CPU (gloo){whole}.")
    return accelerator


def refuse_launcher_s_ways(environment: Mapping[str, str]) -> None:
    """Refuse what ``accelerate launch`` was asked for and these scripts don't do.

    Raises:
        UserError: DeepSpeed, Megatron-LM, a mesh of devices, or a compiler for all.
    """
    for variable, (name, instead) in OTHER_WAYS.items():
        if environment.get(variable, "false").lower() in ("true", "1"):
            raise UserError(
                f"{name}, which these scripts don't work with: {instead}; launch with "
                "accelerate_configs/2gpu.yaml (DistributedDataParallel) instead."
            )
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("no", ""):
        raise UserError(
            "--dynamo_backend would compile the model without comparing it with the eager one; "
            "leave it out (dynamo_config in the configuration file) and give the script --compile."
        )


def close(accelerator: "Accelerator") -> None:
    """End the run on all processes together."""
    # Without the barrier a gloo process can abort because its peer closed the connection first.
    accelerator.wait_for_everyone()
    accelerator.end_training()
