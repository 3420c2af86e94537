"""What micro-batches gain: time of a step of the naive cut over that of the pipeline.

    python benchmarks/pipeline.py                      ResNet-50 in two gloo processes
    python benchmarks/pipeline.py --model resnet18 --microbatches 8 --schedule 1f1b

Every process holds one stage. In the naive cut (one micro-batch) only one of them computes at any
moment. Both variants take turns, a step each, for many rounds, so that whatever else the machine
does falls on both. Printed are the mean time of a step, the share of the stages' time in which they
stand idle (bubble), the same for stages of equal cost (ideal), and the ratio of the two variants'
steps: the median over the rounds with its middle half.

Each process has one thread and needs a core of its own. Small micro-batches take more processor
time than one large batch, which takes from the gain.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parent.parent))

from models.classification import build_classification_model
from pipeline.cut import cut_network
from pipeline.schedule import (
    SCHEDULES,
    Pipeline,
    Times,
    ideal_bubble,
    measured_bubble,
    take_place,
)
from pipeline.setup import take_stage


def measure(rank: int, args: argparse.Namespace, store: str) -> None:
    """One process: build its stage, run both variants in turns; the first prints the table."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=args.stages)
    device, size = torch.device("cpu"), (args.image_size, args.image_size)
    torch.manual_seed(0)
    model = build_classification_model(args.model, 100, image_size=size)
    cut = cut_network(model, size, args.stages, args.balance)
    place = take_place(args.stages, device)
    stage = take_stage(model, cut, place, "no")
    images, labels = torch.randn(args.batch_size, 3, *size), torch.arange(args.batch_size)
    variants = {
        count: Pipeline(
            stage,
            place,
            args.schedule if count > 1 else "gpipe",
            count,
            *((args.batch_size // count, *shape) for shape in cut.shapes(rank)),
            dtype=torch.float32,
            device=device,
        )
        for count in (1, args.microbatches)
    }
    times: dict[int, list[Times]] = {count: [] for count in variants}
    for turn in range(args.rounds + 1):
        for count, pipeline in variants.items():
            stage.zero_grad()
            dist.barrier()
            pipeline.step(images, labels)
            taken = pipeline.take_times()
            if turn:  # the first round makes the connections
                times[count].append(taken)
    lines = [f"{args.model}, {args.batch_size} images of {args.image_size} pixels", *cut.lines()]
    lines.append("micro-batches  step (ms)  bubble   ideal")
    for count, rounds in times.items():
        total = Times(*map(sum, zip(*rounds, strict=True)))
        bubble, ideal = measured_bubble(total, place, device), ideal_bubble(args.stages, count)
        step = 1000 * total.lasted / args.rounds
        lines.append(f"{count:>13}  {step:>9.0f}  {bubble:>6.1%}  {ideal:>6.1%}")
    ratios = [a.lasted / b.lasted for a, b in zip(*times.values(), strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    possible = (1 - ideal_bubble(args.stages, args.microbatches)) * args.stages
    lines.append(
        f"{args.microbatches} micro-batches are {middle:.2f} times as fast as 1 ({low:.2f} to "
        f"{high:.2f}); at most {possible:.2f} is possible"
    )
    if rank == 0:
        print("\n".join(lines))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Read the options and start the processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--schedule", choices=SCHEDULES, default="gpipe")
    parser.add_argument("--balance", choices=("parameters", "compute"), default="compute")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    if min(args.stages, args.microbatches, args.rounds) < 2 or args.batch_size < 1:
        parser.error("--stages, --microbatches and --rounds are 2 or more, --batch_size 1 or more")
    if args.batch_size % args.microbatches:
        parser.error("--microbatches must divide --batch_size")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (args, f"{folder}/store"), nprocs=args.stages)


if __name__ == "__main__":
    main()
