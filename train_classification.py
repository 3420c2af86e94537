"""Train an image classifier with synchronised BatchNorm.

    accelerate launch --config_file accelerate_configs/2gpu.yaml train_classification.py
    torchrun --nproc_per_node=2 train_classification.py --dataset folder --data_dir ~/flowers
    python train_classification.py --config recipes/classification/imagenette_cpu.yaml \\
        --data_dir ~/imagenette

Without options it learns shapes on textured grounds, which it draws itself. On a machine without a
GPU the processes train together on the CPU.
"""

from engine.launch import create_accelerator, read_options, run
from tasks.classification.options import ClassificationOptions

if __name__ == "__main__":
    # Before the slow imports: --help and a mistyped option are answered at once.
    options = read_options(ClassificationOptions, __doc__)

from engine.plan import make_plan
from engine.prepare import build_model, prepare_model
from engine.trainer import Trainer
from tasks.classification.check import check_data
from tasks.classification.sources import load_data
from tasks.classification.task import Classification


def main(options: ClassificationOptions) -> int:
    """Options → data → task → model → BatchNorm becomes SyncBatchNorm → Accelerate → fit."""
    accelerator = create_accelerator(options)
    if options.check_data:
        return check_data(options) if accelerator.is_main_process else 0
    data = load_data(options)
    for note in data.notes:
        accelerator.print(note)
    plan = make_plan(options, len(data.train), accelerator.num_processes)
    task = Classification(options, data, plan, accelerator.device)
    model = build_model(task, options.seed)
    # BatchNorm becomes SyncBatchNorm, where --norm asks for it.
    model, norm = prepare_model(accelerator, model, plan.batch_size, options)
    # Accelerate wraps the model and trains it.
    return Trainer(accelerator, task, model, norm, plan, options).fit()


if __name__ == "__main__":
    run(main, options)
