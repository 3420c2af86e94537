"""Train a semantic segmentation network with synchronised BatchNorm.

    accelerate launch --config_file accelerate_configs/2gpu.yaml train_segmentation.py
    torchrun --nproc_per_node=2 train_segmentation.py --dataset camvid --data_dir ~/CamVid
    python train_segmentation.py --config recipes/segmentation/camvid_cpu.yaml --data_dir ~/CamVid

Without options it learns shapes on textured grounds, which it draws itself. On a machine without a
GPU the processes train together on the CPU.
"""

from engine.launch import create_accelerator, read_options, run
from tasks.segmentation.options import SegmentationOptions

if __name__ == "__main__":
    # Before the slow imports: --help and a mistyped option are answered at once.
    options = read_options(SegmentationOptions, __doc__)

from engine.plan import make_plan
from engine.prepare import build_model, prepare_model
from engine.trainer import Trainer
from tasks.segmentation.check import check_data
from tasks.segmentation.sources import load_data
from tasks.segmentation.task import Segmentation


def main(options: SegmentationOptions) -> int:
    """Options → data → task → model → BatchNorm becomes SyncBatchNorm → Accelerate → fit."""
    accelerator = create_accelerator(options)
    if options.check_data:
        return check_data(options) if accelerator.is_main_process else 0
    data = load_data(options)
    for note in data.notes:
        accelerator.print(note)
    plan = make_plan(options, len(data.train), accelerator.num_processes)
    task = Segmentation(options, data, plan, accelerator.device)
    model = build_model(task, options.seed)
    # BatchNorm becomes SyncBatchNorm, where --norm asks for it.
    model, norm = prepare_model(accelerator, model, plan.batch_size, options)
    # Accelerate wraps the model and trains it.
    return Trainer(accelerator, task, model, norm, plan, options).fit()


if __name__ == "__main__":
    run(main, options)
