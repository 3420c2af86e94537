"""Train one network cut over several devices, micro-batches passing through it in a pipeline.

    torchrun --nproc_per_node=2 train_pipeline.py
    accelerate launch --config_file accelerate_configs/2gpu.yaml train_pipeline.py

Every process holds one stage of the network. With --stages below the number of processes there are
several such pipelines, which train on different samples (data parallel). docs/pipeline.md says
when this pays.
"""

from engine.launch import create_accelerator, read_options, run
from pipeline.options import PipelineOptions

if __name__ == "__main__":
    # Before the slow imports: --help and a mistyped option are answered at once.
    options = read_options(PipelineOptions, __doc__)

from pipeline.cut import cut_network
from pipeline.schedule import take_place
from pipeline.setup import build_model, load_data, take_stage
from pipeline.training import PipelineTrainer
from tasks.classification.check import check_data


def main(options: PipelineOptions) -> int:
    """Options → data → model → its cut → groups of processes → this process's stage → fit."""
    accelerator = create_accelerator(options)
    if options.check_data:
        return check_data(options, load_data) if accelerator.is_main_process else 0
    data = load_data(options)
    for note in data.notes:
        accelerator.print(note)
    model = build_model(options, len(data.classes))
    stages = options.count_stages(accelerator.num_processes)
    cut = cut_network(model, options.size, stages, options.balance, options.cuts)
    for line in cut.lines():
        accelerator.print(line)
    place = take_place(stages, accelerator.device)
    stage = take_stage(model, cut, place, accelerator.mixed_precision)
    del model  # a process keeps its own stage only
    return PipelineTrainer(accelerator, options, data, cut, place, stage).fit()


if __name__ == "__main__":
    run(main, options)
