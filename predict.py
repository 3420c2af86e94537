"""Use trained weights: annotated pictures and videos, masks, boxes, classes, and scores.

    python predict.py --weights runs/mine --input pictures/ --output out/
    python predict.py --weights hub:owner/name --input film.mp4 --output out/
    accelerate launch --config_file accelerate_configs/2gpu.yaml predict.py \\
        --weights runs/mine --dataset folder --data_dir my_masks --output out/

The exit status is 0, or 1 if an input could not be used; predictions.csv says which and why.
"""

from engine.launch import create_accelerator, read_options, run
from inference.options import PredictOptions

if __name__ == "__main__":
    # Before the slow imports: --help and a mistyped option are answered at once.
    options = read_options(PredictOptions, __doc__)

from inference.loop import predict_all
from inference.output import OutputFolder
from inference.sources import find_source
from inference.weights import load_model


def main(options: PredictOptions) -> int:
    """Options → weights → inputs → folder → predict each → one file of all, and scores."""
    accelerator = create_accelerator(options)
    model = load_model(options, accelerator)
    source = find_source(options, model, accelerator)
    folder = OutputFolder(options, model, source, accelerator)
    predict_all(accelerator, model, source, folder, options)
    return folder.conclude()


if __name__ == "__main__":
    run(main, options)
