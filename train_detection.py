"""Train an object detector with synchronised BatchNorm.

    accelerate launch --config_file accelerate_configs/2gpu.yaml train_detection.py
    torchrun --nproc_per_node=2 train_detection.py --dataset coco --data_dir ~/coco --model yolo_s
    python train_detection.py --config recipes/detection/bccd_cpu.yaml --data_dir ~/BCCD

Without options it learns to find shapes on textured grounds, which it draws itself. On a machine
without a GPU the processes train together on the CPU.
"""

from engine.launch import create_accelerator, read_options, run
from tasks.detection.options import DetectionOptions

if __name__ == "__main__":
    # Before the slow imports: --help and a mistyped option are answered at once.
    options = read_options(DetectionOptions, __doc__)

from engine.plan import make_plan
from engine.prepare import build_model, prepare_model
from engine.trainer import Trainer
from tasks.detection.check import check_data
from tasks.detection.sources import load_data
from tasks.detection.task import Detection


def main(options: DetectionOptions) -> int:
    """Options → data → task → model → BatchNorm becomes SyncBatchNorm → Accelerate → fit."""
    accelerator = create_accelerator(options)
    if options.check_data:
        return check_data(options) if accelerator.is_main_process else 0
    data = load_data(options)
    for note in data.notes:
        accelerator.print(note)
    plan = make_plan(options, len(data.train), accelerator.num_processes)
    task = Detection(options, data, plan, accelerator.device)
    model = build_model(task, options.seed)
    # BatchNorm becomes SyncBatchNorm, where --norm asks for it.
    model, norm = prepare_model(accelerator, model, plan.batch_size, options)
    # Accelerate wraps the model and trains it.
    return Trainer(accelerator, task, model, norm, plan, options).fit()


if __name__ == "__main__":
    run(main, options)
