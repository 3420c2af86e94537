"""The networks: shapes, gradients, names and weights."""

import logging
import re
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from data.pixels import IMAGENET
from errors import UserError
from models.backbones import build_backbone
from models.blocks import ConvBNAct, ResidualBlock
from models.segmentation import SEGMENTATION_MODELS, build_segmentation_model
from models.syncbnnet import SYNCBNNET_SIZES, SyncBNBackbone, SyncBNNet
from models.weights import load_matching, read_weights

OWN = ["unet", "deeplabv3plus"]
TINY_TIMM = "timm/test_resnet"
DOCS = Path(__file__).parents[1] / "docs" / "models.md"


def total_loss(outputs):
    return sum(logits.square().mean() for logits in outputs.values())


def without_gradient(model):
    return [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]


# Blocks and SyncBNNet


@pytest.mark.parametrize("dims", [2, 3])
def test_residual_block_starts_as_its_activation(dims):
    x = torch.randn(2, 8, *[6] * dims)
    torch.testing.assert_close(ResidualBlock(8, 8, dims=dims)(x), F.silu(x))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [8, 9])
def test_block_sizes_round_up(stride, size):
    x = torch.randn(2, 4, size, size)
    expected = (2, 6, -(-size // stride), -(-size // stride))
    assert ConvBNAct(4, 6, 3, stride)(x).shape == expected
    assert ConvBNAct(4, 6, 3, stride, dilation=2)(x).shape == expected
    assert ResidualBlock(4, 6, stride)(x).shape == expected


def test_factorised_kernel_keeps_the_size():
    x = torch.randn(2, 4, 5, 8, 8)
    assert ConvBNAct(4, 6, (1, 3, 3), (1, 2, 2), dims=3)(x).shape == (2, 6, 5, 4, 4)
    assert ConvBNAct(4, 6, (3, 1, 1), dims=3)(x).shape == (2, 6, 5, 8, 8)


@pytest.mark.parametrize("dims", [2, 3])
def test_syncbnnet_classifies_images_and_clips(dims):
    net = SyncBNNet(7, dims=dims)
    logits = net(torch.randn(2, 3, *[8] * (dims - 2), 32, 32))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert without_gradient(net) == []


def test_stem_stride_one_keeps_small_images_large():
    backbone = SyncBNBackbone(stem_stride=1)
    assert backbone.strides == [1, 2, 4, 8]
    assert backbone(torch.randn(1, 3, 16, 16))[0].shape[-2:] == (16, 16)


# Backbones


@pytest.mark.parametrize("name", [*SYNCBNNET_SIZES, TINY_TIMM, "timm/mambaout_femto"])
def test_backbone_describes_its_features(name):
    backbone = build_backbone(name).to("meta")
    features = backbone(torch.empty(1, 3, 64, 96, device="meta"))
    assert [f.shape[1] for f in features] == backbone.channels
    assert [(64 // f.shape[2], 96 // f.shape[3]) for f in features] == [
        (s, s) for s in backbone.strides
    ]


def test_output_stride_where_timm_supports_it():
    assert build_backbone(TINY_TIMM, output_stride=16).strides[-1] == 16
    assert build_backbone("timm/densenet121", output_stride=16).strides[-1] == 32


def test_unread_layers_of_hrnet_are_frozen_and_odd_sizes_work():
    model = build_segmentation_model("deeplabv3plus", 3, backbone="timm/hrnet_w18_small")
    assert any(not p.requires_grad for p in model.parameters())
    model.to("meta")
    outputs = model(torch.empty(2, 3, 65, 97, device="meta"))
    assert outputs["out"].shape == (2, 3, 65, 97)
    total_loss(outputs).backward()
    assert without_gradient(model) == []


# Segmentation models


@pytest.mark.parametrize("aux_loss", [False, True])
@pytest.mark.parametrize("name", SEGMENTATION_MODELS)
def test_every_parameter_gets_a_gradient(name, aux_loss):
    """On the meta device: only shapes and the graph matter, and ResNet-101 is large."""
    if name.startswith("lraspp") and aux_loss:
        with pytest.raises(UserError, match="no auxiliary head"):
            build_segmentation_model(name, 5, aux_loss=True)
        return
    with torch.device("meta"):
        model = build_segmentation_model(name, 5, aux_loss=aux_loss)
    x = torch.empty(2, 3, 65, 97, device="meta")
    outputs = model(x)
    assert set(outputs) == ({"out", "aux"} if aux_loss else {"out"})
    assert all(logits.shape == (2, 5, 65, 97) for logits in outputs.values())
    total_loss(outputs).backward()
    assert without_gradient(model) == []
    assert set(model.eval()(x)) == {"out"}


@pytest.mark.parametrize("backbone", ["syncbnnet", TINY_TIMM])
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_own_models_compute(name, backbone, dtype):
    model = build_segmentation_model(name, 4, backbone=backbone, aux_loss=True).to(dtype)
    outputs = model(torch.randn(2, 3, 64, 64, dtype=dtype))
    total_loss(outputs).backward()
    assert without_gradient(model) == []
    assert all(p.grad.isfinite().all() for p in model.parameters())
    for size in [(64, 64), (33, 71)]:
        logits = model.eval()(torch.randn(1, 3, *size, dtype=dtype))["out"]
        assert logits.shape == (1, 4, *size)
        assert logits.dtype == dtype
        assert logits.isfinite().all()


@pytest.mark.parametrize("name", OWN)
def test_own_models_train_with_a_batch_of_one(name):
    assert build_segmentation_model(name, 4)(torch.randn(1, 3, 64, 64))["out"].isfinite().all()


@pytest.mark.parametrize("name", SEGMENTATION_MODELS)
def test_norm_layers_are_plain_batch_norm_after_convolutions_without_bias(name):
    with torch.device("meta"):
        model = build_segmentation_model(name, 5)
    norms = [
        m for m in model.modules() if hasattr(m, "running_mean") or "LayerNorm" in str(type(m))
    ]
    assert norms
    assert {type(m) for m in norms} == {nn.BatchNorm2d}
    if name in OWN:
        blocks = [m for m in model.modules() if isinstance(m, ConvBNAct)]
        assert all(block.conv.bias is None for block in blocks)


@pytest.mark.parametrize("name", OWN)
def test_channels_last_gives_the_same(name):
    model = build_segmentation_model(name, 4).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)["out"]
    model = model.to(memory_format=torch.channels_last)
    actual = model(x.to(memory_format=torch.channels_last))["out"]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_seed_decides_the_weights():
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_segmentation_model("unet", 4).state_dict())
    key = "backbone.stem.conv.weight"
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0][key], states[2][key])


def test_training_starts_near_the_loss_of_guessing():
    torch.manual_seed(0)
    logits = build_segmentation_model("unet", 8)(torch.randn(2, 3, 64, 64))["out"]
    loss = F.cross_entropy(logits, torch.randint(8, (2, 64, 64)))
    assert loss.item() == pytest.approx(torch.tensor(8.0).log().item(), rel=0.15)


@pytest.mark.parametrize("name", OWN)
def test_a_model_learns_one_batch(name):
    torch.manual_seed(0)
    model = build_segmentation_model(name, 2)
    x = torch.randn(2, 3, 64, 64)
    x[:, :, 16:48, 24:56] += 1.5
    truth = torch.zeros(2, 64, 64, dtype=torch.long)
    truth[:, 16:48, 24:56] = 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = F.cross_entropy(model(x)["out"], truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.15


def test_unet_compiles_into_one_graph():
    model = build_segmentation_model("unet", 4, aux_loss=True)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert set(compiled(torch.randn(2, 3, 64, 64))) == {"out", "aux"}


# Names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "unett"}, "did you mean unet"),
        ({"name": "fcn_resnet5"}, "did you mean fcn_resnet50"),
        ({"name": "qqqq"}, "choose one of unet, deeplabv3plus"),
        ({"name": "unet", "backbone": "syncbnet"}, "did you mean syncbnnet"),
        ({"name": "unet", "backbone": "resnet34"}, "did you mean timm/resnet34"),
        ({"name": "unet", "backbone": "timm/vit_tiny_patch16_224"}, "images of one size only"),
        ({"name": "fcn_resnet50", "backbone": TINY_TIMM}, "leave out the backbone"),
        ({"name": "unet", "weights": "default"}, "syncbnnet has no published weights"),
        ({"name": "unet", "weights": "nowhere.pth"}, "nowhere.pth is not a file"),
    ],
)
def test_what_does_not_exist_is_answered_in_one_sentence(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        build_segmentation_model(num_classes=3, **arguments)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)


def test_docs_list_every_model_with_its_parameters():
    text = DOCS.read_text()
    for name in SEGMENTATION_MODELS:
        with torch.device("meta"):
            counts = [sum(p.numel() for p in build_segmentation_model(name, 21).parameters())]
            if not name.startswith("lraspp"):
                model = build_segmentation_model(name, 21, aux_loss=True)
                counts.append(sum(p.numel() for p in model.parameters()))
        row = re.search(rf"^\| `{name}` \|.*$", text, re.MULTILINE)
        assert row, name
        assert all(f"{count:,}" in row[0] for count in counts), (name, counts)
    for name, options in SYNCBNNET_SIZES.items():
        count = sum(p.numel() for p in SyncBNBackbone(**options).parameters())
        assert re.search(rf"^\| `{name}` \| {count:,} \|", text, re.MULTILINE), (name, count)


# Weights


@pytest.mark.parametrize("wrap", ["plain", "ddp", "nested", "safetensors"])
def test_weights_come_back_from_a_file(tmp_path, caplog, wrap):
    source = build_segmentation_model("unet", 4, aux_loss=True)
    state = source.state_dict()
    path = tmp_path / ("w.safetensors" if wrap == "safetensors" else "w.pth")
    if wrap == "safetensors":
        save_file(state, path)
    elif wrap == "ddp":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    else:
        torch.save({"model": state, "epoch": 3} if wrap == "nested" else state, path)
    loaded = build_segmentation_model("unet", 4, aux_loss=True, weights=str(path)).state_dict()
    assert all(torch.equal(loaded[k], state[k]) for k in state)
    assert caplog.text == ""


def test_head_of_other_classes_stays_random_and_is_reported(tmp_path, caplog):
    source = build_segmentation_model("unet", 4)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    with caplog.at_level(logging.WARNING):
        model = build_segmentation_model("unet", 6, weights=str(tmp_path / "w.safetensors"))
    assert len(caplog.records) == 1
    assert "head.0.weight is (4, 16, 1, 1) there and (6, 16, 1, 1) here" in caplog.text
    torch.testing.assert_close(model.backbone.state_dict(), source.backbone.state_dict())


def test_a_classifier_starts_a_segmenter(tmp_path):
    classifier = SyncBNNet(10)
    torch.save(classifier.state_dict(), tmp_path / "whole.pth")
    torch.save(classifier.backbone.state_dict(), tmp_path / "backbone.pth")
    for file in ("whole.pth", "backbone.pth"):
        model = build_segmentation_model("unet", 4, weights=str(tmp_path / file))
        torch.testing.assert_close(model.backbone.state_dict(), classifier.backbone.state_dict())


def test_weights_of_another_model_are_refused():
    state = torchvision.models.squeezenet1_0().state_dict()
    with pytest.raises(UserError, match="no tensor with the name and shape"):
        load_matching(SyncBNNet(3), state, "the file")


def test_unreadable_weights_are_named(tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"not weights")
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save(nn.Linear(2, 2), tmp_path / "object.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ["bad.pth", "bad.safetensors", "empty.pth", "object.pth", "list.pth", "."]:
        with pytest.raises(UserError, match=re.escape(str(tmp_path / name))) as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_published_weights_with_other_classes(monkeypatch, caplog):
    published = torchvision.models.get_model(
        "lraspp_mobilenet_v3_large", weights=None, weights_backbone=None
    )
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *a, **k: published.state_dict()
    )
    model = build_segmentation_model("lraspp_mobilenet_v3_large", 5, weights="default")
    torch.testing.assert_close(model.backbone.state_dict(), published.backbone.state_dict())
    assert "classifier.low_classifier.weight is (21, 40, 1, 1) there" in caplog.text


@pytest.mark.parametrize("weights", ["default", "backbone"])
def test_no_network_says_what_to_do(monkeypatch, weights):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(UserError, match=r"Can't fetch .* pass its path as weights"):
        build_segmentation_model("lraspp_mobilenet_v3_large", 5, weights=weights)

    import timm

    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **k: refuse() if k.get("pretrained") else create(*a, **k)
    )
    with pytest.raises(UserError, match=r"Can't fetch .* pass its path as weights"):
        build_segmentation_model("unet", 5, backbone=TINY_TIMM, weights=weights)


def test_a_timm_backbone_gets_the_pixel_scaling_it_was_trained_with():
    backbone = build_backbone(TINY_TIMM).eval()  # whose constants are 0.5
    image = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    for mine, expected in zip(
        backbone((image - mean) / std), backbone.net((image - 0.5) / 0.5), strict=True
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
