"""The detectors: assignment, losses, detections, and torchvision's models behind one interface."""

import copy
import logging
import urllib.error
from functools import partial

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import box_iou

from errors import UserError
from models import detection
from models.detection import TORCHVISION_DETECTORS
from models.detector_interface import on_cpu
from models.pyramid_detectors import JointTower
from models.syncbnnet import SyncBNBackbone, SyncBNNet
from models.yolo import START_SIZE, Yolo, cells, decode, select_detections
from norm import convert_norm
from tasks.detection.assignment import assign
from tasks.detection.loss import complete_iou_loss, yolo_losses

TINY_TIMM = "timm/test_resnet"
OVER_PYRAMID = ["fasterrcnn", "retinanet", "fcos"]
SMALL_TORCHVISION = ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"]
SIZE = 64

build_detection_model = partial(detection.build_detection_model, yolo_loss=yolo_losses)


def make_targets(*images, objects=3, masks=False, dtype=torch.float32):
    """Padded targets from lists of (label, (x1, y1, x2, y2))."""
    boxes = torch.zeros(len(images), objects, 4, dtype=dtype)
    labels = torch.full((len(images), objects), -1)
    filled = torch.zeros(len(images), objects, SIZE, SIZE, dtype=torch.uint8)
    for i, image in enumerate(images):
        for j, (label, box) in enumerate(image):
            boxes[i, j], labels[i, j] = torch.tensor(box, dtype=dtype), label
            x1, y1, x2, y2 = box
            filled[i, j, y1:y2, x1:x2] = 1
    targets = {"boxes": boxes, "labels": labels}
    return targets | {"masks": filled} if masks else targets


TWO = [(0, (4, 6, 30, 28)), (3, (24, 30, 60, 62))]
ONE = [(2, (10, 20, 50, 44))]


def total(losses):
    return sum(losses.parts.values())


def without_gradient(model):
    return [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]


def batch_norms(model):
    return [m for m in model.modules() if type(m) is nn.BatchNorm2d]


@pytest.fixture(scope="module")
def yolo():
    """A detector in float64 that has seen some images, so that its statistics are not 0 and 1."""
    torch.manual_seed(0)
    model = build_detection_model("yolo_nano", 5).double()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(4, 3, SIZE, SIZE, dtype=torch.double), make_targets([], [], [], []))
    return model.eval()


# Boxes


def test_codes_are_shifts_of_the_centre_and_logarithms_of_the_size():
    torch.manual_seed(0)
    codes = torch.randn(2, 21, 4, dtype=torch.double)
    centers, strides = cells([(4, 4), (2, 2), (1, 1)], (32, 32), codes)
    low, high = decode(codes, centers, strides).split(2, -1)
    unit = strides.unsqueeze(-1)
    torch.testing.assert_close(((low + high) / 2 - centers) / unit, codes[..., :2])
    torch.testing.assert_close(((high - low) / (START_SIZE * unit)).log(), codes[..., 2:])
    assert decode(codes * 1e9, centers, strides).isfinite().all()


def test_cells_lie_on_the_image():
    centers, strides = cells([(3, 5), (2, 3), (1, 2)], (24, 40), torch.zeros(1))
    assert centers[:6].tolist() == [[4, 4], [12, 4], [20, 4], [28, 4], [36, 4], [4, 12]]
    assert centers[-1].tolist() == [48, 16]
    assert strides.tolist() == [8] * 15 + [16] * 6 + [32] * 2


# Assignment


def by_hand(boxes, labels, scores=None, **options):
    """Assignment on the 8x8 grid of stride 8 whose predictions are boxes of 16 pixels."""
    codes = torch.zeros(1, 84, 4)
    centers, strides = cells([(8, 8), (4, 4), (2, 2)], (64, 64), codes)
    predicted = torch.cat([centers - 8, centers + 8], -1)[None]
    scores = torch.full((1, 84, 3), 0.5) if scores is None else scores
    boxes, labels = torch.tensor(boxes).float()[None], torch.tensor(labels)[None]
    found = assign(scores, predicted, centers, strides, boxes, labels, **options)
    return found.object[0], found.target[0], centers


def test_positives_lie_in_the_object_and_the_best_fit_scores_its_overlap():
    objects, target, centers = by_hand([[20, 20, 36, 36]], [1])
    positive = target > 0
    assert 1 < positive.sum() <= 10
    inside = ((centers >= 20) & (centers <= 36)).all(-1)
    assert inside[positive].all()
    assert (objects[positive] == 0).all()
    # The cell at (28, 28) predicts exactly this box.
    assert centers[target.argmax()].tolist() == [28, 28]
    assert target.max() == 1


def test_no_prediction_learns_two_objects():
    boxes = [[16, 16, 48, 48], [20, 20, 52, 52]]
    objects, target, centers = by_hand(boxes, [0, 2])
    positive = target > 0
    assert set(objects[positive].tolist()) == {0, 1}
    predicted = torch.cat([centers - 8, centers + 8], -1)[positive]
    closest = box_iou(torch.tensor(boxes).float(), predicted).argmax(0)
    alone, other = closest == 0, closest == 1
    assert (objects[positive][alone] == 0).all()
    assert (objects[positive][other] == 1).all()


def test_a_prediction_with_the_right_class_is_preferred():
    scores = torch.full((1, 84, 3), 0.1)
    scores[0, 27, 2] = 0.9  # the cell at (28, 28)
    _, target, _ = by_hand([[16, 16, 48, 48]], [2], scores, positives=1)
    assert target.nonzero().tolist() == [[27]]
    _, target, _ = by_hand([[16, 16, 48, 48]], [0], scores, positives=1)
    assert target.sum() > 0


def test_even_an_object_between_all_cells_is_learnt():
    _, target, _ = by_hand([[31, 31, 33, 33]], [0])
    assert (target > 0).any()


def test_an_object_that_no_prediction_meets_is_learnt():
    codes = torch.zeros(1, 84, 4)
    centers, strides = cells([(8, 8), (4, 4), (2, 2)], (64, 64), codes)
    far = torch.tensor([900.0, 900, 910, 910]).expand(1, 84, 4)
    boxes, labels = torch.tensor([[[16.0, 16, 48, 48]]]), torch.tensor([[0]])
    found = assign(torch.full((1, 84, 1), 0.5), far, centers, strides, boxes, labels)
    assert found.target.max() > 0


@pytest.mark.parametrize("objects", [0, 1, 4])
def test_padding_is_never_assigned(objects):
    boxes = torch.rand(2, objects, 4) * 64
    codes = torch.zeros(1, 84, 4)
    centers, strides = cells([(8, 8), (4, 4), (2, 2)], (64, 64), codes)
    predicted = torch.cat([centers - 8, centers + 8], -1).expand(2, -1, -1)
    labels = torch.full((2, objects), -1)
    found = assign(torch.rand(2, 84, 3), predicted, centers, strides, boxes, labels)
    assert found.target.count_nonzero() == 0


# The project's detector


@pytest.mark.parametrize("name", ["yolo_nano", "yolo_s", "yolo_m"])
def test_detections_and_losses_have_the_promised_form(name):
    model = build_detection_model(name, 5, max_detections=7, score_threshold=0.0)
    images = torch.rand(2, 3, SIZE, 72)
    losses = model(images, make_targets(TWO, ONE))
    assert set(losses.parts) == {"cls", "box"}
    assert all(part.shape == () and part > 0 for part in losses.parts.values())
    assert losses.positives > 0
    total(losses).backward()
    assert without_gradient(model) == []
    with torch.no_grad():
        found = model.eval()(images)
    assert len(found) == 2
    for image in found:
        assert image["boxes"].shape == (7, 4)
        assert image["scores"].shape == image["labels"].shape == (7,)
        assert image["labels"].dtype == torch.int64
        assert (image["boxes"] >= 0).all()
        assert (image["boxes"] <= torch.tensor([72, SIZE, 72, SIZE])).all()


def test_losses_of_a_batch_are_the_sum_of_its_images(yolo):
    """What makes training independent of the number of processes."""
    images = torch.rand(4, 3, SIZE, SIZE, dtype=torch.double)
    contents = [TWO, [], ONE, [*TWO, *ONE]]
    whole = yolo(images, make_targets(*contents, dtype=torch.double))
    single = [
        yolo(images[i : i + 1], make_targets(p, dtype=torch.double)) for i, p in enumerate(contents)
    ]
    for name, part in whole.parts.items():
        torch.testing.assert_close(part, sum(s.parts[name] for s in single), rtol=1e-12, atol=0)
    positives = sum(s.positives for s in single)
    torch.testing.assert_close(whole.positives, positives, rtol=1e-12, atol=0)


def test_padding_does_not_change_the_loss(yolo):
    images = torch.rand(2, 3, SIZE, SIZE, dtype=torch.double)
    few = yolo(images, make_targets(TWO, ONE, objects=2))
    many = yolo(images, make_targets(TWO, ONE, objects=9))
    torch.testing.assert_close(many, few, rtol=1e-12, atol=0)
    none = yolo(images, make_targets([], [], objects=0))
    padded = yolo(images, make_targets([], [], objects=2))
    torch.testing.assert_close(padded, none, rtol=1e-12, atol=0)


def test_the_first_loss_is_not_drowned_by_background():
    torch.manual_seed(0)
    model = build_detection_model("yolo_nano", 80).eval()
    with torch.no_grad():
        losses = model(torch.rand(1, 3, 128, 128), make_targets(ONE))
    predictions = 16**2 + 8**2 + 4**2
    expected = predictions * 80 * -torch.log(torch.tensor(1 - 0.01))
    assert losses.parts["cls"] < 1.5 * expected


def test_loss_compiles_into_one_graph():
    """Nothing in it waits for the device or depends on how many objects there are."""
    torch.manual_seed(0)
    targets = make_targets(TWO, ONE)

    def loss(logits, codes):
        centers, strides = cells([(8, 8), (4, 4), (2, 2)], (64, 64), codes)
        return yolo_losses(logits, decode(codes, centers, strides), centers, strides, targets)

    logits, codes = torch.randn(2, 84, 5), torch.randn(2, 84, 4)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, codes), loss(logits, codes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_under_autocast(dtype):
    torch.manual_seed(0)
    model = build_detection_model("yolo_nano", 5)
    images, targets = torch.rand(2, 3, SIZE, SIZE), make_targets(TWO, ONE)
    expected = total(model(images, targets)).item()
    with torch.autocast("cpu", dtype=dtype):
        losses = model(images, targets)
    assert {part.dtype for part in losses.parts.values()} == {torch.float32}
    assert total(losses).item() == pytest.approx(expected, rel=0.02)


def test_yolo_learns_two_images():
    torch.manual_seed(0)
    images = torch.rand(2, 3, SIZE, SIZE) * 0.2
    targets = make_targets(TWO, ONE)
    for image, boxes, labels in zip(images, targets["boxes"], targets["labels"], strict=True):
        for (x1, y1, x2, y2), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            if label >= 0:
                image[label % 3, y1:y2, x1:x2] += 0.7
    model = build_detection_model("yolo_nano", 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        losses = model(images, targets)
        optimizer.zero_grad()
        (total(losses) / losses.positives.clamp(min=1)).backward()
        optimizer.step()
    with torch.no_grad():
        # The running statistics of these two images are those of the batch.
        for norm in batch_norms(model):
            norm.momentum = 1.0
        model(images, targets)
        found = model.eval()(images)
    for found_here, boxes, labels in zip(found, targets["boxes"], targets["labels"], strict=True):
        real = int((labels >= 0).sum())
        best = {key: value[:real] for key, value in found_here.items()}
        iou = box_iou(boxes[:real], best["boxes"])
        assert iou.amax(1).min() > 0.75
        assert torch.equal(best["labels"][iou.argmax(1)], labels[:real])


def test_yolo_over_other_backbones():
    for backbone in ("syncbnnet", TINY_TIMM):
        model = build_detection_model("yolo_nano", 5, backbone=backbone)
        total(model(torch.rand(2, 3, SIZE, SIZE), make_targets(TWO, ONE))).backward()
        assert without_gradient(model) == []
    with pytest.raises(UserError, match=r"strides \[2, 4\], .* needs one at 8"):
        Yolo(SyncBNBackbone(widths=(8,), depths=(1,)), 5)


def test_a_yolo_without_a_loss_only_detects():
    model = Yolo(Shrinking(), 5, width=8).eval()
    with torch.no_grad():
        assert len(model(torch.rand(2, 3, SIZE, SIZE))) == 2
    with pytest.raises(ValueError, match="loss=None"):
        model(torch.rand(2, 3, SIZE, SIZE), make_targets(TWO, ONE))


class Shrinking(nn.Module):
    """A backbone whose maps are the image's means over 8, 16 and 32 pixels."""

    channels, strides = [3, 3, 3], [8, 16, 32]

    def __init__(self, round_to=1):
        super().__init__()
        self.round_to = round_to
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return [nn.functional.avg_pool2d(x, stride) for stride in self.strides]


def test_yolo_over_a_backbone_that_rounds_sizes_down():
    backbone = Shrinking()
    model = Yolo(backbone, 5, yolo_losses, width=8)
    corner = make_targets([(1, (103, 103, 107, 107))])
    images = torch.rand(1, 3, 108, 108)
    losses = model(images, corner)  # maps of 13, 6 and 3 cells a side
    assert losses.positives > 0
    # Where stride times cells leaves a border, the object's centre still lies in a cell.
    centers, strides = cells([(13, 13), (6, 6), (3, 3)], (108, 108), images)
    reach = ((centers - 105).abs() <= strides[:, None] / 2).all(1)
    assert reach[: 13 * 13].any() and reach[13 * 13 : -9].any() and reach[-9:].any()
    assert centers.max() < 108


def test_yolo_pads_where_a_backbone_would_enlarge():
    backbone = Shrinking(round_to=32)
    model = Yolo(backbone, 5, width=8).eval()
    images = torch.rand(1, 3, 100, 70)
    with torch.no_grad():
        found = model(images)[0]
    (seen,) = backbone.seen
    assert seen.shape == (1, 3, 128, 96)
    assert torch.equal(seen[..., :100, :70], (images - model.mean) / model.std)
    assert not seen[..., 100:, :].any() and not seen[..., 70:].any()
    assert (found["boxes"] <= torch.tensor([70, 100, 70, 100])).all()


# Choosing detections


def test_detections_come_best_first_and_not_twice():
    boxes = torch.tensor([[0.0, 0, 20, 20], [1, 1, 21, 21], [30, 30, 50, 50], [-9, 0, 5, 99]])
    scores = torch.tensor([[0.6, 0.0], [0.9, 0.55], [0.7, 0.0], [0.0005, 0.3]])
    found = select_detections(boxes, scores, (40, 60))
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.7, 0.55, 0.3]))
    assert found["labels"].tolist() == [0, 0, 1, 1]  # the same place as another class stays
    assert found["boxes"][1].tolist() == [30, 30, 50, 40]  # clipped
    assert found["boxes"][3].tolist() == [0, 0, 5, 40]
    few = select_detections(boxes, scores, (40, 60), max_detections=2, score_threshold=0.65)
    assert len(few["scores"]) == 2
    assert len(select_detections(boxes, scores, (40, 60), score_threshold=0.8)["scores"]) == 1
    assert len(select_detections(boxes, scores, (40, 60), iou_threshold=0.99)["scores"]) == 5
    assert len(select_detections(boxes, scores, (40, 60), candidates=1)["scores"]) == 1
    assert len(select_detections(boxes, scores * 0, (40, 60))["scores"]) == 0


# Every detector


@pytest.fixture(scope="module", params=["yolo_nano", *OVER_PYRAMID, *SMALL_TORCHVISION])
def detector(request):
    torch.manual_seed(0)
    model = build_detection_model(request.param, 5, image_size=(SIZE, SIZE))
    if request.param in ("fasterrcnn", "fasterrcnn_mobilenet_v3_large_320_fpn"):
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 32  # for speed
    return model


@pytest.mark.parametrize("contents", [(TWO, []), ([], [])], ids=["objects", "no object"])
def test_every_parameter_gets_a_gradient(detector, contents):
    detector.train().zero_grad(set_to_none=True)
    losses = detector(torch.rand(2, 3, SIZE, SIZE), make_targets(*contents))
    if detector.divides_by == "positives":
        assert (losses.positives > 0) == (contents[0] == TWO)
    else:
        assert losses.positives is None
    total(losses).backward()
    assert without_gradient(detector) == []


def test_evaluation_mode_gives_losses_and_changes_nothing(detector):
    images, targets = torch.rand(2, 3, SIZE, SIZE), make_targets(TWO, ONE)
    detector.train()(images, targets)  # statistics other than the initial ones
    detector.eval()
    before = copy.deepcopy(detector.state_dict())
    losses, found = [], []
    with torch.no_grad():
        for _ in range(2):
            torch.manual_seed(0)
            losses.append(total(detector(images, targets)))
            found.append(detector(images))
    assert torch.equal(*losses)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(detector.state_dict(), before, rtol=0, atol=0)
    assert not any(m.training for m in detector.modules())
    # In training mode the batch's statistics take part, so the loss is another one.
    torch.manual_seed(0)
    assert total(detector.train()(images, targets)) != losses[0]


def test_losses_and_detections_take_one_pass(detector):
    images, targets = torch.rand(2, 3, SIZE, SIZE), make_targets(TWO, ONE)
    detector.eval()
    with torch.no_grad():
        torch.manual_seed(0)
        losses, found = detector(images, targets), detector(images)
        passes = []
        hook = detector.backbone.register_forward_hook(lambda *args: passes.append(args[2]))
        torch.manual_seed(0)
        both = detector(images, targets, detect=True)
        hook.remove()
    first = passes[0] if isinstance(passes[0], list) else list(passes[0].values())
    for other in passes[1:]:  # the same maps, kept
        assert all(map(torch.equal, first, other.values()))
        assert first[0].data_ptr() == next(iter(other.values())).data_ptr()
    torch.testing.assert_close(both, (losses, found), rtol=0, atol=0)
    assert "forward" not in vars(detector.backbone)


def test_detections_reach_the_cpu_as_they_are():
    found = [
        {
            "boxes": torch.rand(count, 4) * 600,
            "scores": torch.rand(count),
            "labels": torch.randint(90, (count,)),
        }
        for count in (3, 0, 2)
    ]
    torch.testing.assert_close(on_cpu(found), found, rtol=0, atol=0)


def test_detections_are_in_pixels_of_the_input(detector):
    with torch.no_grad():
        found = detector.eval()(torch.rand(2, 3, SIZE, 96))
    assert len(found) == 2
    for image in found:
        assert 0 < len(image["scores"]) <= 100
        assert image["boxes"][:, [0, 2]].max() > SIZE  # else they would be of another scale
        assert (image["boxes"] <= torch.tensor([96, SIZE, 96, SIZE])).all()
        assert set(image["labels"].tolist()) <= set(range(5))
        assert (image["scores"].diff() <= 0).all()


def test_limits_of_detections():
    for name in ["yolo_nano", "fcos", "ssdlite320_mobilenet_v3_large", "fasterrcnn"]:
        options = {"image_size": (SIZE, SIZE), "score_threshold": 0.0}
        model = build_detection_model(name, 5, **options, max_detections=3).eval()
        none = build_detection_model(name, 5, **options | {"score_threshold": 1.0}).eval()
        with torch.no_grad():
            assert len(model(torch.rand(1, 3, SIZE, SIZE))[0]["scores"]) == 3
            assert len(none(torch.rand(1, 3, SIZE, SIZE))[0]["scores"]) == 0


def test_torchvision_losses_are_its_means_times_the_images():
    model = build_detection_model("retinanet", 5, image_size=(SIZE, SIZE)).double().eval()
    images = torch.rand(3, 3, SIZE, SIZE, dtype=torch.double)
    contents = [TWO, [], ONE]
    whole = model(images, make_targets(*contents, dtype=torch.double))
    single = [
        model(images[i : i + 1], make_targets(p, dtype=torch.double))
        for i, p in enumerate(contents)
    ]
    for name, part in whole.parts.items():
        torch.testing.assert_close(part, sum(s.parts[name] for s in single))
    assert model.divides_by == "images"


@pytest.mark.parametrize("name", OVER_PYRAMID)
def test_boxes_stay_precise_under_autocast(name):
    """bfloat16 has 8 bits: with anchors in it boxes on large images would jump by pixels."""
    torch.manual_seed(0)
    model = build_detection_model(name, 5, image_size=(SIZE, 544)).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = model(torch.rand(1, 3, SIZE, 544))[0]["boxes"]
    assert boxes.dtype == torch.float32
    inside = boxes[(boxes > 260) & (boxes < 540)]
    assert not torch.equal(inside, inside.bfloat16().float())


# Normalisation


@pytest.mark.parametrize("name", ["yolo_nano", *OVER_PYRAMID])
@pytest.mark.parametrize("kind", ["sync_bn", "group_norm"])
def test_every_norm_layer_is_converted(name, kind):
    backbone = TINY_TIMM if name == "fcos" else None
    model = build_detection_model(name, 5, backbone=backbone, image_size=(128, 128))
    count = sum(hasattr(m, "running_mean") for m in model.modules())
    model, converted = convert_norm(model, kind)
    assert len(converted) == count > 10
    assert batch_norms(model) == []
    parts = {"backbone." if name == "yolo_nano" else "backbone.backbone."}
    parts |= {"yolo_nano": {"neck.", "heads."}, "fasterrcnn": {"backbone.fpn."}}.get(
        name, {"backbone.fpn.", "backbone.extra.", "head.cls_tower.", "head.box_tower."}
    )
    if name == "fcos":
        parts.discard("backbone.extra.")  # this backbone is coarse enough for such images
    assert all(any(n.startswith(part) for n in converted) for part in parts)
    total(model(torch.rand(2, 3, SIZE, SIZE), make_targets(TWO, ONE))).backward()
    assert without_gradient(model) == []


def test_joint_tower_normalises_all_levels_together():
    torch.manual_seed(0)
    tower = JointTower(4, depth=1)
    maps = [torch.randn(2, 4, 6, 6), 5 + 3 * torch.randn(2, 4, 3, 2)]
    out = tower(maps)
    assert [m.shape for m in out] == [m.shape for m in maps]
    pixels = torch.cat([tower.convs[0](m).flatten(2) for m in maps], 2)
    mean, var = pixels.mean((0, 2)), pixels.var((0, 2), unbiased=False)
    expected = [
        ((tower.convs[0](m) - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]).relu()
        for m in maps
    ]
    torch.testing.assert_close(out, expected)


# torchvision's published detectors


@pytest.mark.parametrize("name", TORCHVISION_DETECTORS)
def test_published_detectors_are_torchvisions(name):
    """On the meta device: names and shapes are what counts, and the networks are large."""
    with torch.device("meta"):
        model = build_detection_model(name, 90)
        classes = 91 if "retinanet" not in name and "fcos" not in name else 90
        theirs = torchvision.models.get_model(
            name, num_classes=classes, weights=None, weights_backbone=None
        )
    assert isinstance(model, type(theirs))
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert shapes == {k: v.shape for k, v in theirs.state_dict().items()}
    assert all(p.requires_grad for p in model.parameters())


def test_mask_rcnn_trains_and_gives_masks():
    torch.manual_seed(0)
    model = build_detection_model("maskrcnn_resnet50_fpn", 5, max_detections=2)
    model.roi_heads.fg_bg_sampler.batch_size_per_image = 8
    model.rpn._post_nms_top_n = {"training": 20, "testing": 20}
    losses = model(torch.rand(1, 3, SIZE, SIZE), make_targets(TWO, masks=True))
    assert {"mask", "box_reg", "classifier", "objectness", "rpn_box_reg"} == set(losses.parts)
    total(losses).backward()
    assert without_gradient(model) == []
    with torch.no_grad():
        found = model.eval()(torch.rand(1, 3, SIZE, SIZE))[0]
    assert found["masks"].shape == (2, SIZE, SIZE)
    assert found["masks"].is_floating_point()
    assert 0 <= found["masks"].min() < found["masks"].max() <= 1


def pretend_published(monkeypatch, name):
    """Let torchvision find random weights of all COCO classes instead of a download."""
    published = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    for key, value in published.named_parameters():
        if key.endswith(".bias") and key.startswith(("head", "roi_heads")):
            nn.init.normal_(value)  # as trained ones do, these differ from class to class
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *a, **k: published.state_dict()
    )
    return published


@pytest.mark.parametrize("name", SMALL_TORCHVISION)
def test_published_weights_with_other_classes(monkeypatch, caplog, name):
    published = pretend_published(monkeypatch, name).state_dict()
    model = build_detection_model(name, 5, weights="default", trainable_layers=2)
    own = model.state_dict()
    same = [k for k in own if own[k].shape == published[k].shape]
    assert len(same) > 0.9 * len(own)
    assert all(torch.equal(own[k], published[k]) for k in same)
    assert "0 of the 5 classes are in it" in caplog.text
    frozen = [k for k, p in model.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(k.startswith("backbone.") for k in frozen)
    total(model(torch.rand(2, 3, SIZE, SIZE), make_targets(TWO, ONE))).backward()
    assert without_gradient(model) == []


def test_published_weights_with_the_same_classes(monkeypatch, caplog):
    name = "ssdlite320_mobilenet_v3_large"
    published = pretend_published(monkeypatch, name).state_dict()
    for names in (None, COCO_NAMES[1:]):
        model = build_detection_model(name, 90, weights="default", class_names=names)
        torch.testing.assert_close(dict(model.state_dict()), dict(published), rtol=0, atol=0)
    assert caplog.text == ""


COCO_NAMES = torchvision.models.detection.SSDLite320_MobileNet_V3_Large_Weights.DEFAULT.meta[
    "categories"
]


def class_logits(model, maps):
    """A detector's outputs for each class from random features, without the background."""
    torch.manual_seed(1)
    if hasattr(model, "roi_heads"):
        said = list(model.roi_heads.box_predictor(torch.randn(3, maps)))
        said[1] = said[1].unflatten(1, (-1, 4)).transpose(1, 2)
        if model.roi_heads.mask_predictor is not None:
            masks = model.roi_heads.mask_predictor(torch.randn(3, 256, 2, 2))
            said.append(masks.flatten(2).transpose(1, 2))
        return [part[..., 1:] for part in said]
    widths = maps if isinstance(maps, list) else [maps]
    logits = model.head.classification_head([torch.randn(1, width, 4, 4) for width in widths])
    return [logits[..., 1:] if isinstance(maps, list) else logits]


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("fasterrcnn_mobilenet_v3_large_320_fpn", 1024),
        ("maskrcnn_resnet50_fpn", 1024),
        ("fcos_resnet50_fpn", 256),
        ("ssdlite320_mobilenet_v3_large", [672, 480, 512, 256, 256, 128]),
    ],
)
def test_published_heads_know_their_classes_by_name(monkeypatch, caplog, name, maps):
    """COCO's own file has 80 classes in the place of the heads' 91."""
    published = pretend_published(monkeypatch, name).eval()
    dense = name.startswith("fcos")
    theirs = COCO_NAMES[not dense :]
    known = [name for name in COCO_NAMES[1:] if name != "N/A"]
    names = ["wombat", *reversed(known)]
    assert len(known) == 80
    model = build_detection_model(name, 81, weights="default", class_names=names).eval()
    with torch.no_grad():
        said = zip(class_logits(model, maps), class_logits(published, maps), strict=True)
        for mine, expected in said:
            assert mine.shape[-1] == 81
            learnt = [theirs.index(name) for name in names[1:]]
            torch.testing.assert_close(mine[..., 1:], expected[..., learnt])
    assert "80 of the 81 classes are in it" in caplog.text and "(wombat)" in caplog.text


def test_as_many_classes_of_other_names_are_no_heads_to_keep(monkeypatch):
    name = "ssdlite320_mobilenet_v3_large"
    published = pretend_published(monkeypatch, name).state_dict()
    names = [f"thing {n}" for n in range(89)] + ["person"]
    own = build_detection_model(name, 90, weights="default", class_names=names).state_dict()
    key = "head.classification_head.module_list.0.1.bias"
    mine, theirs = own[key].view(-1, 91), published[key].view(-1, 91)
    assert torch.equal(mine[:, [0, 90]], theirs[:, [0, COCO_NAMES.index("person")]])
    assert not torch.equal(mine[:, 1], theirs[:, 1])


def test_published_backbone_is_frozen_and_can_be_synchronised(monkeypatch):
    name = "mobilenet_v3_large"
    published = torchvision.models.get_model(name).state_dict()
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *a, **k: published
    )
    model = build_detection_model("fasterrcnn_mobilenet_v3_large_fpn", 5, weights="backbone")
    assert batch_norms(model) == []
    model, converted = convert_norm(model, "sync_bn")
    assert len(converted) > 40


def test_no_network_says_what_to_do(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    for weights in ("default", "backbone"):
        with pytest.raises(UserError, match=r"Can't fetch .* pass its path as weights"):
            build_detection_model("ssdlite320_mobilenet_v3_large", 5, weights=weights)


# Anchors, names and files


def test_coarse_levels_fit_the_image():
    for name in ("retinanet", "fcos"):
        strides = {
            size: build_detection_model(name, 5, image_size=(size, 2 * size)).backbone.strides
            for size in (64, 128, 416)
        }
        assert strides == {64: [8, 16], 128: [8, 16, 32], 416: [8, 16, 32, 64]}
        assert build_detection_model(name, 5).backbone.strides == [8, 16, 32, 64, 128]


@pytest.mark.parametrize("name", OVER_PYRAMID)
def test_anchors_grow_with_the_strides(name):
    model = build_detection_model(name, 5, image_size=(128, 128))
    anchors = next(m for m in model.modules() if isinstance(m, AnchorGenerator))
    factor = {"fasterrcnn": 8, "retinanet": 4, "fcos": 1}[name]
    assert [sizes[0] for sizes in anchors.sizes] == [factor * s for s in model.backbone.strides]


@pytest.mark.parametrize("name", ["yolo_nano", "fasterrcnn"])
def test_weights_come_back_and_a_classifier_starts_a_detector(tmp_path, caplog, name):
    backbone = "syncbnnet"
    source = build_detection_model(name, 5, backbone=backbone)
    save_file(source.state_dict(), tmp_path / "detector.safetensors")
    path = str(tmp_path / "detector.safetensors")
    loaded = build_detection_model(name, 5, backbone=backbone, weights=path)
    torch.testing.assert_close(loaded.state_dict(), source.state_dict(), rtol=0, atol=0)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        build_detection_model(name, 7, backbone=backbone, weights=path)
    assert "left out" in caplog.text

    classifier = SyncBNNet(10)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    path = str(tmp_path / "classifier.pth")
    started = build_detection_model(name, 5, backbone=backbone, weights=path).backbone
    body = started if name == "yolo_nano" else started.backbone
    torch.testing.assert_close(body.state_dict(), classifier.backbone.state_dict())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("yolo_nan", {}, "did you mean yolo_nano"),
        ("yolo_nano", {"weights": "default"}, "no published weights"),
        ("yolo_nano", {"trainable_layers": 2}, "leave it out"),
        ("yolo_nano", {"image_size": (16, 640)}, "16x640 are too small"),
        ("yolo_nano", {"backbone": "resnet18"}, "No backbone is called"),
        ("fcos_resnet50_fpn", {"backbone": "timm/resnet18"}, "has its backbone built in"),
        ("fcos_resnet50_fpn", {"trainable_layers": 2}, "freezes layers of published"),
        (
            "fcos_resnet50_fpn",
            {"weights": "backbone", "trainable_layers": 6},
            r"out of range: .* 0 .* to 5",
        ),
        (
            "ssdlite320_mobilenet_v3_large",
            {"weights": "backbone", "trainable_layers": 7},
            r"out of range: .* 0 .* to 6",
        ),
    ],
)
def test_bad_requests_are_explained(name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        build_detection_model(name, 5, **options)
    assert "\n" not in str(caught.value)


def test_complete_iou_loss_is_torchvision_s():
    low, size = torch.rand(2, 4, 50, 2, dtype=torch.float64) * 40
    boxes = torch.cat([low, low + size + 1], -1).requires_grad_()
    aims = boxes.detach().flip(1) + torch.rand(4, 50, 4, dtype=torch.float64)
    results = []
    for loss in (complete_iou_loss, torchvision.ops.complete_box_iou_loss):
        values = loss(boxes, aims)
        (gradient,) = torch.autograd.grad(values.sum(), boxes)
        results.append((values, gradient))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)
