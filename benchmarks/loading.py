"""How quickly samples are made: this project's data sets against torchvision's pieces, by turns.

    python benchmarks/loading.py                       without workers: the work per sample
    python benchmarks/loading.py --workers 1           with a worker process, as in training

torchvision's side is put together as its reference scripts do: its data sets, Pillow's decoder,
its transforms (v2), pixels scaled in the loader. Both sides read the same files, which the script
makes: JPEG images of 500x375 pixels, and MPEG-4 videos of 340x240. torchvision 0.26 has no reader
of videos any more: PyAV stands in for it, which decodes every frame of the clip's span.

Both sides take turns, a pass over the files each, so that other work of the machine slows both. The
ratio of the rates is the median over the rounds, followed by the range of the middle half. Without
workers the time is this process's processor's, with workers the clock's.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from any folder

from benchmarks.video_decoding import make_videos
from data.pixels import IMAGENET
from data.stream import SampleKey
from engine.loaders import Loading, make_loader
from engine.plan import make_plan
from tasks.classification.options import ClassificationOptions
from tasks.classification.sources import load_data as load_classification
from tasks.classification.task import Classification
from tasks.detection.options import DetectionOptions
from tasks.detection.sources import load_data as load_detection
from tasks.detection.task import Detection
from tasks.segmentation.options import SegmentationOptions
from tasks.segmentation.sources import load_data as load_segmentation
from tasks.segmentation.task import Segmentation
from tasks.video.options import VideoOptions
from tasks.video.sources import load_data as load_video
from tasks.video.task import VideoClassification

IMAGES, HEIGHT, WIDTH, CLASSES = 48, 375, 500, 4
CLIP, STRIDE = 16, 2
BATCH = 8


def make_images(folder: Path) -> None:
    """The same JPEG files for classification, segmentation and detection, with their labels."""
    rng = np.random.default_rng(0)
    annotations = []
    for number in range(IMAGES):
        coarse = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        noisy = np.asarray(image, np.int16) + rng.integers(-12, 13, (HEIGHT, WIDTH, 3))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        mask = Image.fromarray(coarse[..., 0] % CLASSES).resize((WIDTH, HEIGHT), 0)
        for split in ("train", "val"):
            name = f"{number:03d}"
            for place in (f"cls/{split}/{number % CLASSES}", f"seg/images/{split}", f"det/{split}"):
                (folder / place).mkdir(parents=True, exist_ok=True)
                image.save(folder / place / f"{name}.jpg", quality=90)
            (folder / f"seg/masks/{split}").mkdir(parents=True, exist_ok=True)
            mask.save(folder / f"seg/masks/{split}" / f"{name}.png")
        for box in rng.uniform(20, 200, (7, 4)).round(1):
            entry = {"image_id": number, "category_id": 1, "bbox": box.tolist(), "iscrowd": 0}
            annotations.append(entry | {"id": len(annotations) + 1, "area": box[2] * box[3]})
    content = {
        "images": [
            {"id": i, "file_name": f"{i:03d}.jpg", "height": HEIGHT, "width": WIDTH}
            for i in range(IMAGES)
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    for split in ("train", "val"):
        (folder / f"det/instances_{split}.json").write_text(json.dumps(content))
    (folder / "seg/classes.txt").write_text("\n".join(f"class{n}" for n in range(CLASSES)))


SCALED = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IMAGENET)]


class Pairs(Dataset):
    """torchvision's segmentation data sets in short: an image and a mask from their files."""

    def __init__(self, root: Path) -> None:
        self.images = sorted((root / "images/train").iterdir())
        self.masks = sorted((root / "masks/train").iterdir())
        self.transform = v2.Compose(
            [
                v2.RandomResize(260, 1040),
                v2.RandomHorizontalFlip(),
                v2.RandomCrop(480, pad_if_needed=True, fill={Image.Image: 0, tv_tensors.Mask: 255}),
                v2.PILToTensor(),
                v2.ToPureTensor(),
            ]
        )
        self.normalise = v2.Normalize(*IMAGENET)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(self.images[index]).convert("RGB")
        mask = tv_tensors.Mask(v2.functional.pil_to_tensor(Image.open(self.masks[index]))[0])
        image, mask = self.transform(image, mask)
        return self.normalise(v2.functional.to_dtype(image, scale=True)), mask


class Clips(Dataset):
    """torchvision's Kinetics in short: every frame of the clip's span, and its transforms."""

    def __init__(self, root: Path) -> None:
        self.files = sorted(root.glob("train/*/*"))
        self.transform = v2.Compose(
            [
                v2.ToDtype(torch.float32, scale=True),
                v2.Resize((128, 171), antialias=False),
                v2.RandomHorizontalFlip(),
                v2.Normalize(*IMAGENET),
                v2.RandomCrop((112, 112)),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with av.open(str(self.files[index])) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            span = CLIP * STRIDE
            first = int(torch.randint(stream.frames - span, ()))
            container.seek(int(first / stream.average_rate / stream.time_base), stream=stream)
            frames = []
            for frame in container.decode(stream):
                if frame.pts >= first and len(frames) < span:
                    frames.append(frame.to_rgb().to_ndarray())
                elif len(frames) == span:
                    break
        clip = torch.from_numpy(np.stack(frames)[::STRIDE]).permute(0, 3, 1, 2)
        return self.transform(clip).transpose(0, 1)


def references(folder: Path) -> dict[str, Dataset]:
    """torchvision's side of each task."""
    crop = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), *SCALED])
    large_scale = v2.Compose(
        [
            v2.ToImage(),
            v2.ScaleJitter((640, 640)),
            v2.RandomCrop((640, 640), pad_if_needed=True),
            v2.RandomHorizontalFlip(),
            v2.SanitizeBoundingBoxes(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    coco = datasets.CocoDetection(
        folder / "det/train", folder / "det/instances_train.json", transforms=large_scale
    )
    return {
        "classification": datasets.ImageFolder(folder / "cls/train", crop),
        "segmentation": Pairs(folder / "seg"),
        "detection": datasets.wrap_dataset_for_transforms_v2(coco, ("boxes", "labels")),
        "video": Clips(folder / "video"),
    }


def ours(folder: Path) -> dict[str, object]:
    """This project's tasks on the same files."""
    kinds = {
        "classification": (Classification, load_classification, ClassificationOptions, "cls"),
        "segmentation": (Segmentation, load_segmentation, SegmentationOptions, "seg"),
        "detection": (Detection, load_detection, DetectionOptions, "det"),
        "video": (VideoClassification, load_video, VideoOptions, "video"),
    }
    settings = {
        "classification": {"image_size": [224, 224], "crop_area": [0.08, 1.0]},
        "segmentation": {"crop_size": [480, 480], "color_jitter": [0.0] * 4},
        "detection": {"dataset": "coco", "image_size": [640, 640], "color_jitter": [0.0] * 4},
        "video": {
            "crop_size": [112, 112],
            "short_side": [128, 128],
            "eval_short_side": 128,
            "clip_frames": CLIP,
            "frame_stride": STRIDE,
            "hflip": 0.5,
        },
    }
    tasks = {}
    for name, (task, load, options, place) in kinds.items():
        chosen = {"dataset": "folder", "data_dir": str(folder / place), **settings[name]}
        options = options(**chosen)
        data = load(options)
        plan = make_plan(options, len(data.train), 1)
        tasks[name] = task(options, data, plan, torch.device("cpu"))
    return tasks


def seconds_per_sample(loader: DataLoader) -> float:
    """Of a pass over the data, from the first batch on: starting workers isn't counted."""
    clock = time.perf_counter if loader.num_workers else time.process_time
    batches = iter(loader)
    next(batches)
    start = clock()
    count = sum(1 for _ in batches)
    return (clock() - start) / (count * BATCH)


def measure(folder: Path, rounds: int, workers: int, only: list[str]) -> None:
    """Print a row for each task."""
    print(f"{'':15} {'torchvision':>12} {'ours':>10} {'ratio':>7} {'middle half':>14}")
    tasks, theirs = ours(folder), references(folder)
    for name in only or theirs:
        task, reference = tasks[name], theirs[name]
        keys = [SampleKey(0, index, index) for index in range(len(task.train_data))]
        loading = Loading(workers, pin_memory=False)
        collate = (lambda rows: tuple(zip(*rows, strict=True))) if name == "detection" else None

        def mine(task=task, keys=keys, loading=loading):
            settings = {"sampler": keys, "batch_size": BATCH}
            return make_loader(task.train_data, task.collate_train, loading, **settings)

        def other(reference=reference, collate=collate):
            return DataLoader(reference, BATCH, num_workers=workers, collate_fn=collate)

        pairs = [(seconds_per_sample(other()), seconds_per_sample(mine())) for _ in range(rounds)]
        medians = [1 / statistics.median(side) for side in zip(*pairs, strict=True)]
        low, middle, high = np.quantile([a / b for a, b in pairs], [0.25, 0.5, 0.75])
        print(
            f"{name:15} {medians[0]:8.0f} 1/s {medians[1]:6.0f} 1/s {middle:7.2f} "
            f"{low:6.2f} - {high:4.2f}",
            flush=True,
        )


def main() -> None:
    """Read the options, make the files, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="some of the tasks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder)
        for split in ("train", "val"):
            for kind in ("0", "1"):
                (folder / "video" / split / kind).mkdir(parents=True)
                place = folder / "video" / split / kind
                make_videos(place, each=12 if split == "train" else 1, only=["mpeg4.avi"])
        measure(folder, options.rounds, options.workers, options.only)


if __name__ == "__main__":
    main()
