"""How the scripts are started, and how a user's mistake looks on the screen."""

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import accelerate as accelerate_package
import numpy as np
import psutil
import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.config.default import write_basic_config
from accelerate.utils import DistributedType
from PIL import Image

from engine.cluster import join_tasks
from engine.launch import _sentence_for, create_accelerator
from engine.stop import GONE, launcher
from errors import UserError
from pipeline.options import PipelineOptions
from tasks.segmentation.options import SegmentationOptions as Options
from tests.conftest import LAUNCH, ROOT, Run, accelerate, flags, launched
from tests.table import SCRIPTS

SCRIPT = "train_segmentation"

CONFIGS = {
    "1gpu": (DistributedType.NO, 1, 1),
    "2gpu": (DistributedType.MULTI_GPU, 2, 1),
    "4gpu": (DistributedType.MULTI_GPU, 4, 1),
    "8gpu": (DistributedType.MULTI_GPU, 8, 1),
    "2cpu": (DistributedType.MULTI_GPU, 2, 1),
    "2node_8gpu": (DistributedType.MULTI_GPU, 16, 2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_load_as_what_they_are(name: str, tmp_path: Path) -> None:
    config = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert (config.distributed_type, config.num_processes, config.num_machines) == CONFIGS[name]
    assert config.mixed_precision == "no" and config.debug is False
    # What accelerate writes for this configuration has no key that the file lacks.
    config.to_yaml_file(str(tmp_path / "written.yaml"))
    keys = re.compile(r"^(\w+):", re.MULTILINE)
    ours = (ROOT / "accelerate_configs" / f"{name}.yaml").read_text()
    written = set(keys.findall((tmp_path / "written.yaml").read_text()))
    assert set(keys.findall(ours)) >= {k for k in written if getattr(config, k) not in ({}, None)}


def test_every_config_is_tested() -> None:
    assert {path.stem for path in (ROOT / "accelerate_configs").iterdir()} == set(CONFIGS)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    def pretend(number: int, processes: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))

    return pretend


def test_more_processes_than_gpus_are_refused(gpus) -> None:
    gpus(1, processes=2)
    with pytest.raises(UserError, match=r"2 processes .* 1 GPU; launch with --num_processes 1"):
        create_accelerator(Options())
    gpus(2, processes=3)
    with pytest.raises(UserError, match="--num_processes 2"):
        create_accelerator(Options())


def test_fsdp_on_gpus_is_refused(gpus, monkeypatch) -> None:
    gpus(2, processes=2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for options in (Options(), PipelineOptions()):
        with pytest.raises(UserError, match="FSDP shards the weights, which this script keeps"):
            create_accelerator(options)


@pytest.mark.parametrize(
    "variable, value, words",
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "parallelism_config"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "--compile"),
    ],
)
def test_what_accelerate_can_do_otherwise_is_refused(monkeypatch, variable, value, words) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=words):
        create_accelerator(Options())


SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[07-08,12]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
OPENMPI = {f"OMPI_COMM_WORLD_{name}": "2" for name in ("SIZE", "LOCAL_SIZE")}
OPENMPI |= {f"OMPI_COMM_WORLD_{name}": "1" for name in ("RANK", "LOCAL_RANK")}
MPICH = {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize(
    "tasks, expected",
    [
        (SLURM, ("3", "5", "1", "2", "gpu07")),
        (OPENMPI, ("1", "2", "1", "2", "127.0.0.1")),
        (MPICH, ("0", "2", "0", "2", "127.0.0.1")),
    ],
    ids=["slurm", "openmpi", "mpich"],
)
def test_tasks_without_a_launcher_join(tasks: dict, expected: tuple, capsys) -> None:
    environment = dict(tasks)
    join_tasks(environment)
    said = f"Task 0 of {expected[1]}, " in capsys.readouterr().out
    assert said == (expected[0] == "0")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    assert tuple(environment[name] for name in names) == expected
    assert 20000 <= int(environment["MASTER_PORT"]) < 40000
    other = dict(tasks)
    join_tasks(other)
    assert other == environment
    before = dict(environment)
    join_tasks(environment)  # as a launcher within the task would have set them
    assert environment == before


@pytest.mark.parametrize(
    "alone",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"},  # a batch script's own process
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},
        SLURM | {"RANK": "0", "WORLD_SIZE": "1"},  # from a launcher
        {"PMI_RANK": "0", "PMI_SIZE": "1"},
    ],
    ids=str,
)
def test_a_single_task_stays_alone(alone: dict) -> None:
    environment = dict(alone)
    join_tasks(environment)
    assert environment == alone


def test_tasks_of_mpi_on_several_machines_need_an_address() -> None:
    tasks = OPENMPI | {"OMPI_COMM_WORLD_SIZE": "4"}
    with pytest.raises(UserError, match="-x MASTER_ADDR"):
        join_tasks(dict(tasks))
    environment = tasks | {"MASTER_ADDR": "10.0.0.1"}
    join_tasks(environment)
    assert environment["WORLD_SIZE"] == "4" and environment["MASTER_ADDR"] == "10.0.0.1"


def test_a_slurm_task_that_sees_one_gpu_is_told_how_to_see_all(gpus, monkeypatch) -> None:
    gpus(1, processes=2)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(UserError, match="--gpu-bind=none"):
        create_accelerator(Options())


@pytest.mark.parametrize(
    "environment, words, found",
    [
        ({}, ["bash"], False),
        ({"TORCHELASTIC_RUN_ID": "x"}, ["python", "-m", "torch.distributed.run"], True),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, ["python", "/bin/accelerate", "launch", "x"], True),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, ["/bin/accelerate-launch", "x"], True),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, ["bash", "-c", "python x"], False),
    ],
    ids=str,
)
def test_whose_death_ends_a_process(monkeypatch, environment, words, found) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: words)
    assert launcher.__wrapped__() == (os.getppid() if found else None)


def test_a_launcher_that_died_first_is_gone(monkeypatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(os, "getppid", lambda: 1)
    for words, expected in ((["/sbin/init"], GONE), (["python", "torchrun"], 1)):
        monkeypatch.setattr(psutil.Process, "cmdline", lambda self, words=words: words)
        assert launcher.__wrapped__() == expected


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.ENAMETOOLONG, "File name too long", "aaa"), "aaa: File name too long"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied"),
        (RuntimeError("DataLoader worker (pid 1) is killed by signal: Bus error."), "--shm-size"),
        (RuntimeError("Could not determine home directory."), "begins with ~"),
        (OSError(errno.EBADF, "Bad file descriptor", "x"), ""),
        (ValueError("x"), ""),
    ],
    ids=str,
)
def test_the_system_s_errors_are_sentences(error: Exception, words: str) -> None:
    sentence = _sentence_for(error)
    assert words in sentence and bool(sentence) == bool(words)


def test_nothing_breaks_where_the_system_has_no_forks_and_locks(tmp_path: Path) -> None:
    """As on Windows, as far as this system can pretend to be one."""
    code = """
import multiprocessing, os, pathlib, signal, sys
import accelerate, datasets, psutil, tensorboard, timm  # not what is tested
sys.modules["fcntl"] = sys.modules["resource"] = None
for module, names in {
    os: ("fork", "register_at_fork", "sched_getaffinity", "O_NOFOLLOW"),
    signal: ("pthread_sigmask", "sigtimedwait", "sigwaitinfo"),
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
multiprocessing.get_all_start_methods = lambda: ["spawn"]
from tests.conftest import train_here
path = pathlib.Path(sys.argv[1])
run = train_here("train_segmentation", path, num_workers="auto", limit_train=80)
assert run.status == 0
"""
    done = launched([sys.executable, "-c", code, str(tmp_path / "run")], tmp_path / "run")
    assert done.status == 0, done.output
    assert "can't be locked (no locks on this system)" in done.output


@pytest.mark.parametrize("options", [{}, {"cpu": True}], ids=str)
@pytest.mark.parametrize("fsdp", ["true", "false"])
def test_processes_on_the_cpu_say_what_they_are(gpus, monkeypatch, capsys, options, fsdp) -> None:
    class Printer:
        def __init__(self, **_: object) -> None:
            self.print = print

    monkeypatch.setattr(accelerate_package, "Accelerator", Printer)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", fsdp)
    gpus(0, processes=2)
    create_accelerator(Options(**options))
    said = capsys.readouterr().out
    assert ("FSDP is left out" in said) == (fsdp == "true")
    assert ("No GPU here: 2 processes train one model" in said) == (not options)


@pytest.mark.parametrize(
    "precision, options, part",
    [("fp16", {}, "needs a GPU"), ("bf16", {"double": True}, "--mixed_precision no")],
)
def test_precisions_that_cannot_be(monkeypatch, precision, options, part) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    with pytest.raises(UserError, match=part):
        create_accelerator(Options(**options))


def test_bf16_trains(train, monkeypatch) -> None:
    full = train("full")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    half = train("half")
    assert half.losses != full.losses
    assert half.losses == pytest.approx(full.losses, rel=0.05)


def said(run: Run) -> list[str]:
    """What a script said, without the launcher's report of it."""
    return run.output.split("Traceback")[0].splitlines()


def test_an_unknown_option_is_said_once(tmp_path: Path) -> None:
    run = launched(accelerate(2, "train_segmentation.py", "--batchsize", "4"), tmp_path)
    assert run.status != 0
    sentence = "unknown option 'batchsize'; did you mean --batch_size"
    assert sum(sentence in line for line in said(run)) == 1
    assert sentence in run.output.splitlines()[-2]  # the launcher's last word
    assert 'File "' not in "".join(said(run))


def test_a_file_that_one_process_cannot_read_ends_the_job(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind, mode in {"images": "RGB", "masks": "L"}.items():
            (tmp_path / split / kind).mkdir(parents=True)
            for number in range(8):
                Image.new(mode, (40, 40)).save(tmp_path / split / kind / f"{number}.png")
    (tmp_path / "classes.txt").write_text("ground\nobject\n")
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "train" / "images" / "3.png")
    path = tmp_path / "train" / "images" / "3.png"
    path.write_bytes(path.read_bytes()[:2000])
    options = SCRIPTS[SCRIPT].tiny_with("folder") | {
        "dataset": "folder",
        "data_dir": tmp_path,
        "output_dir": tmp_path / "run",
    }
    options |= {"limit_train": 0, "max_steps": 500, "num_workers": 1}
    started = time.monotonic()
    run = launched(accelerate(2, "train_segmentation.py", *flags(**options)), tmp_path / "run")
    assert run.status != 0 and time.monotonic() - started < 90
    assert sum("images/3.png" in line for line in said(run)) == 1
    assert "images/3.png" in "".join(run.output.splitlines()[-3:])


def test_two_machines_are_one_job(tmp_path: Path) -> None:
    """Two launches with their own rank, as on two machines, and the 2-node file."""
    config = str(ROOT / "accelerate_configs" / "2node_8gpu.yaml")
    options = SCRIPTS[SCRIPT].tiny | {"output_dir": tmp_path / "run", "norm": "sync_bn"}
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    launches = []
    for rank in range(2):
        where = [
            "--num_processes",
            "2",
            "--main_process_port",
            "29713",
            "--machine_rank",
            str(rank),
        ]
        command = [*LAUNCH, "--config_file", config, *where, "train_segmentation.py"]
        launches.append(subprocess.Popen([*command, *flags(**options)], cwd=ROOT, env=env))
    assert [launch.wait(timeout=180) for launch in launches] == [0, 0]
    run = Run(tmp_path / "run", 0)
    assert run.summary["world_size"] == 2 and len(run.steps) == 2
    assert len(list(run.path.rglob("events.out.tfevents*"))) == 1


def test_accelerate_config_s_own_default_file(tmp_path: Path) -> None:
    written = write_basic_config(save_location=str(tmp_path / "default_config.yaml"))
    options = flags(**SCRIPTS[SCRIPT].tiny, output_dir=tmp_path / "run")
    command = [*LAUNCH, "--config_file", str(written), "train_segmentation.py", *options]
    run = launched(command, tmp_path / "run")
    assert run.status == 0, run.output
    assert run.summary["world_size"] == 1
