"""What micro-batches gain: time of a step of the naive cut over that of the pipeline.

    python benchmarks/pipeline.py                      ResNet-50 in two gloo processes
    python benchmarks/pipeline.py --model resnet18 --microbatches 8 --schedule 1f1b

Every process holds one stage. In the naive cut (one micro-batch) only one of them computes at any
moment. Both variants take turns, a step each, for many rounds, so that whatever else the machine
does falls on both. Printed are for each variant

    step        time of a step
    processor   processor time that all stages together spend in a step
    bubble      share of the stages' time in which they stand idle
    ideal       the same for stages of equal cost

and the ratio of the two variants' steps: the median over the rounds, with its middle half, and that
of the fastest steps, which a machine busy with other things disturbs least.

Each process has one thread and needs a core of its own. Small micro-batches take more processor
time than one large batch, which takes from the gain; where only the time of a step grows, the
stages had no cores of their own.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parent.parent))

from models.classification import build_classification_model
from pipeline.cut import Stage, costs_of, cut_evenly, units_of
from pipeline.schedule import (
    SCHEDULES,
    Pipeline,
    Times,
    ideal_bubble,
    measured_bubble,
    take_place,
)


def measure(rank: int, args: argparse.Namespace, store: str) -> None:
    """One process: build its stage, run both variants in turns; the first prints the table."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=args.stages)
    device = torch.device("cpu")
    place = take_place(args.stages, device)
    size = (args.image_size, args.image_size)
    torch.manual_seed(0)
    units = units_of(build_classification_model(args.model, 100, image_size=size))
    costs = costs_of(units, size)
    starts = cut_evenly([getattr(cost, args.balance) for cost in costs], args.stages)
    part = slice(starts[rank], [*starts[1:], len(units)][rank])
    shapes = (costs[part.start - 1].shape if part.start else (3, *size), costs[part][-1].shape)
    stage = Stage(units[part])
    images, labels = torch.randn(args.batch_size, 3, *size), torch.arange(args.batch_size)
    variants = {
        count: Pipeline(
            stage,
            place,
            args.schedule if count > 1 else "gpipe",
            count,
            *((args.batch_size // count, *shape) for shape in shapes),
            dtype=torch.float32,
            device=device,
        )
        for count in (1, args.microbatches)
    }
    times: dict[int, list[Times]] = {count: [] for count in variants}
    processor = torch.zeros(2, dtype=torch.float64)
    for turn in range(args.rounds + 1):
        for number, (count, pipeline) in enumerate(variants.items()):
            stage.zero_grad()
            dist.barrier()
            started = time.process_time()
            pipeline.step(images, labels)
            seconds = time.process_time() - started
            both = pipeline.take_times()
            if turn:  # the first round makes the connections
                times[count].append(both)
                processor[number] += seconds / args.rounds
    sums = {count: Times(*map(sum, zip(*rounds, strict=True))) for count, rounds in times.items()}
    bubbles = [measured_bubble(both, place, device) for both in sums.values()]
    dist.all_reduce(processor)
    if rank == 0:
        report(args, costs, starts, times, processor.tolist(), bubbles)
    dist.barrier()
    dist.destroy_process_group()


def report(
    args: argparse.Namespace,
    costs: list,
    starts: list[int],
    times: dict[int, list[Times]],
    processor: list[float],
    bubbles: list[float],
) -> None:
    """Print the table."""
    total = sum(cost.compute for cost in costs)
    ends = [*starts[1:], len(costs)]
    shares = [
        sum(cost.compute for cost in costs[a:b]) / total for a, b in zip(starts, ends, strict=True)
    ]
    print(
        f"{args.model}, {args.batch_size} pictures of {args.image_size} pixels, {args.stages} "
        f"stages with {', '.join(f'{share:.0%}' for share in shares)} of the computation, "
        f"{args.schedule}, {args.rounds} rounds"
    )
    print("micro-batches  step (ms)  processor (ms)  bubble   ideal")
    for (count, rounds), seconds, bubble in zip(times.items(), processor, bubbles, strict=True):
        lasted = 1000 * statistics.mean(each.lasted for each in rounds)
        ideal = ideal_bubble(args.stages, count)
        print(
            f"{count:>13}  {lasted:>9.0f}  {1000 * seconds:>14.0f}  {bubble:>6.1%}  {ideal:>6.1%}"
        )
    naive, pipelined = ([each.lasted for each in rounds] for rounds in times.values())
    ratios = [a / b for a, b in zip(naive, pipelined, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    possible = (1 - ideal_bubble(args.stages, args.microbatches)) * args.stages
    print(
        f"{args.microbatches} micro-batches are {middle:.2f} times as fast as 1 ({low:.2f} to "
        f"{high:.2f}), in the fastest steps {min(naive) / min(pipelined):.2f} times; at most "
        f"{possible:.2f} is possible"
    )


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
