"""How quickly a large detection data set is opened, and in how much memory, beside torchvision's.

    python benchmarks/index.py                      a sixth of COCO's training split
    python benchmarks/index.py --images 118287      all of it: 480 MB of annotations
    python benchmarks/index.py --masks              with the objects' outlines

The script makes a file of annotations like COCO's, with polygons, and small images. Each opening is
a process of its own, and what its imports take is subtracted. Both sides take turns. Ours reads the
header of every image too, since boxes are clipped to the image as it is; torchvision's doesn't. All
images are one file, so their headers lie in memory: from a disk they take longer. The second
opening of ours takes the index from its cache, which files below 8 MB (2,000 images) don't get. The
ratio is torchvision's seconds over ours.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = 7.27  # of an image of COCO, on average
HEIGHT, WIDTH = 480, 640


def make_coco(folder: Path, images: int) -> None:
    """A data set whose validation split is one image; all images are links to one file."""
    rng = np.random.default_rng(0)
    source = folder / "image.jpg"
    Image.new("RGB", (WIDTH, HEIGHT)).save(source)
    categories = [{"supercategory": "any", "id": n, "name": f"class{n}"} for n in range(1, 81)]
    (folder / "annotations").mkdir()
    for split, count in (("train", images), ("val", 1)):
        (folder / f"{split}2017").mkdir()
        listed, objects = [], []
        for number in range(1, count + 1):
            name = f"{number:012d}.jpg"
            copy_or_link(source, folder / f"{split}2017" / name)
            listed.append(
                {
                    "license": 3,
                    "file_name": name,
                    "coco_url": f"http://images.example.org/{split}2017/{name}",
                    "height": HEIGHT,
                    "width": WIDTH,
                    "date_captured": "2013-11-14 11:18:45",
                    "id": number,
                }
            )
            for _ in range(max(1, rng.poisson(OBJECTS))):
                points = (rng.random(2 * rng.integers(8, 42)) * 400).round(2).tolist()
                box = (rng.random(4) * [400, 300, 230, 170] + [0, 0, 5, 5]).round(2).tolist()
                objects.append(
                    {
                        "segmentation": [points],
                        "area": round(box[2] * box[3] * 0.6, 4),
                        "iscrowd": 0,
                        "image_id": number,
                        "bbox": box,
                        "category_id": int(rng.integers(1, 81)),
                        "id": len(objects) + 1,
                    }
                )
        content = {"images": listed, "annotations": objects, "categories": categories}
        with open(folder / f"annotations/instances_{split}2017.json", "w") as file:
            json.dump(content, file)


def copy_or_link(source: Path, place: Path) -> None:
    """A hard link, which takes no space, or a copy where the file system has none left."""
    try:
        os.link(source, place)
    except OSError:
        place.write_bytes(source.read_bytes())


def open_once(side: str, folder: str, masks: bool) -> None:
    """Open the data set in this process; prints the seconds and the bytes it took."""
    if side == "torchvision":
        from torchvision.datasets import CocoDetection
    else:
        sys.path.insert(0, str(ROOT))
        from tasks.detection.options import DetectionOptions
        from tasks.detection.sources import load_data
    before, start = peak(), time.perf_counter()
    if side == "torchvision":
        CocoDetection(f"{folder}/train2017", f"{folder}/annotations/instances_train2017.json")
    else:
        model = {"model": "maskrcnn_resnet50_fpn"} if masks else {}
        load_data(DetectionOptions(dataset="coco", data_dir=folder, **model))
    print(json.dumps([time.perf_counter() - start, peak() - before]))


def peak() -> int:
    """The most memory this process has held so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(side: str, folder: Path, cache: str, masks: bool) -> tuple[float, float]:
    """Seconds and bytes of one opening, in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    result = subprocess.run(
        [*command, *(["--masks"] if masks else [])],
        env=os.environ | {"HF_DATASETS_CACHE": cache, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return tuple(json.loads(result.stdout.splitlines()[-1]))


def main() -> None:
    """Read the options, make the data set, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--masks", action="store_true", help="ours reads the outlines too")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side == "make":  # a process inherits the peak of the one that starts it
        make_coco(Path(options.folder), options.images)
        return
    if options.side:
        open_once(options.side, options.folder, options.masks)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "coco"
        folder.mkdir()
        command = [sys.executable, __file__, "--side", "make", "--folder", str(folder)]
        subprocess.run([*command, "--images", str(options.images)], check=True)
        size = (folder / "annotations/instances_train2017.json").stat().st_size
        print(f"{options.images} images, {size / 1e6:.0f} MB of annotations")
        results = {"torchvision": [], "ours, first": [], "ours, again": []}
        for number in range(options.rounds):
            for side, found in results.items():
                place = str(Path(name) / f"cache{number}")
                found.append(measure(side.split(",")[0], folder, place, options.masks))
        theirs = [seconds for seconds, _ in results["torchvision"]]
        print(f"{'':14} {'seconds':>8} {'ratio':>7} {'peak GB':>8}")
        for side, found in results.items():
            seconds = [each for each, _ in found]
            ratio = statistics.median(a / b for a, b in zip(theirs, seconds, strict=True))
            memory = statistics.median(bytes_ for _, bytes_ in found) / 1e9
            print(f"{side:14} {statistics.median(seconds):8.1f} {ratio:7.2f} {memory:8.2f}")


if __name__ == "__main__":
    main()
