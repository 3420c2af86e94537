"""Share a run on the Hugging Face hub: weights, recipe, metrics, pictures and a model card.

python share.py --run runs/mine --folder look/      # what would be sent
hf auth login
python share.py --run runs/mine --repo owner/name
python predict.py --weights hub:owner/name --input pictures/ --output out/
"""

from engine.launch import read_options, run
from sharing.options import ShareOptions
from sharing.upload import share


def main(options: ShareOptions) -> int:
    """Options → the run's files without paths, and a card → the hub."""
    print(share(options))
    return 0


if __name__ == "__main__":
    run(main, read_options(ShareOptions, __doc__))
