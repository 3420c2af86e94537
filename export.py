"""Write trained weights as a file for other programs, and check that it computes the same.

    python export.py --weights runs/mine --format onnx --output model.onnx
    python export.py --weights runs/mine --format torch_export --input_type uint8
    python predict.py --weights model.onnx --input pictures/ --output out/

ONNX takes three more packages: pip install -r requirements-export.txt
"""

from engine.launch import read_options, run
from exporting.options import ExportOptions

if __name__ == "__main__":
    # Before the slow imports: --help and a mistyped option are answered at once.
    options = read_options(ExportOptions, __doc__)

from exporting.write import export
from inference.trained import load_trained


def main(options: ExportOptions) -> int:
    """Options → trained model → file → the same outputs, or no file."""
    for line in export(load_trained(options.weights), options).lines():
        print(line)
    return 0


if __name__ == "__main__":
    run(main, options)
