"""The classifiers of images and of clips: names, shapes, gradients, pixel scaling, weights."""

import logging
import re
import urllib.error

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from data.pixels import IMAGENET
from errors import UserError
from models.blocks import ConvBNAct, FactorizedConv, ResidualBlock
from models.classification import CLASSIFICATION_MODELS, build_classification_model
from models.dry_run import dry_run
from models.lenet import LeNet
from models.pretrained import pixel_scaling
from models.syncbnnet import SyncBNNet
from models.video import VIDEO_MODELS, SingleFrame, build_video_model
from norm import convert_norm
from norm.convert import family

# A model of each kind: small, of torchvision and of timm, with and without BatchNorm.
IMAGE_MODELS = {
    "syncbnnet": (32, 32),
    "syncbnnet_s": (48, 64),
    "lenet": (28, 28),
    "resnet18": (64, 64),
    "mobilenet_v3_small": (64, 64),
    "inception_v3": (96, 96),
    "timm/test_resnet": (64, 96),
    "timm/test_efficientnet": (64, 96),
    "timm/test_vit": (64, 96),
}
WITH_ACTIVATION = ["timm/test_efficientnet", "timm/mobilenetv3_small_050", "timm/test_byobnet"]
OWN_VIDEO = ["syncbnnet3d", "syncbnnet3d_s", "syncbnnet2plus1d"]


def without_gradient(model):
    return [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]


def one_sentence(error) -> str:
    message = str(error.value)
    assert "\n" not in message and "--" not in message and len(message) < 400
    return message


# Images


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_images_become_logits_and_every_parameter_learns(name):
    torch.manual_seed(0)
    model = build_classification_model(name, 7, image_size=IMAGE_MODELS[name]).train()
    logits = model(torch.randn(2, 3, *IMAGE_MODELS[name]))
    assert logits.shape == (2, 7) and logits.isfinite().all()
    logits.sum().backward()
    assert without_gradient(model) == []
    assert all(p.requires_grad for p in model.parameters())  # none of these has unused parameters


def test_all_of_torchvisions_classifiers_are_offered():
    assert {"resnet50", "efficientnet_b0", "swin_t"} < set(CLASSIFICATION_MODELS)
    assert "fcn_resnet50" not in CLASSIFICATION_MODELS
    for name in ("shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"):
        with torch.device("meta"):
            model = build_classification_model(name, 3, image_size=(64, 64))
        assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 3)


def test_lenet_has_the_sizes_of_the_book():
    shapes = [tuple(p.shape) for p in LeNet(10, in_channels=1).parameters() if p.ndim > 1]
    assert shapes == [(20, 1, 3, 3), (50, 20, 5, 5), (128, 800), (10, 128)]
    model, x = LeNet(10), torch.randn(2, 3, 28, 28)
    maps = F.avg_pool2d(F.relu(model[0](x)), 2)
    maps = F.avg_pool2d(F.relu(model[3](maps)), 2)
    assert maps.shape == (2, 50, 4, 4)
    expected = model[10](F.relu(model[8](maps.flatten(1))))
    torch.testing.assert_close(model(x), expected)
    assert model(torch.randn(2, 3, 50, 31)).shape == (2, 10)


def test_syncbnnet_keeps_small_images_large():
    small = build_classification_model("syncbnnet", 3, image_size=(32, 32))
    large = build_classification_model("syncbnnet", 3, image_size=(64, 64))
    assert (small.backbone.strides[0], large.backbone.strides[0]) == (1, 2)
    assert small.state_dict().keys() == large.state_dict().keys()


@pytest.mark.parametrize("name", WITH_ACTIVATION)
def test_activations_of_timm_survive_synchronised_batchnorm(name):
    torch.manual_seed(0)
    model = build_classification_model(name, 5).eval()
    for module in model.modules():  # statistics at which the activation matters
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    count = sum(family(module) == "bn" for module in model.modules())
    model, converted = convert_norm(model, "sync_bn", impl="own")
    assert len(converted) == count > 3
    torch.testing.assert_close(model(x), expected)
    model.train()(x).sum().backward()
    assert without_gradient(model) == []


def test_unused_parameters_do_not_ask_for_a_gradient():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.frozen = (nn.Linear(4, 2) for _ in range(3))
            self.frozen.requires_grad_(False)
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.used(self.norm(x)) + self.frozen(x) + torch.rand(())

    model = Partly()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    dry_run(model, "partly", (4,), "change it")
    asks = {k for k, p in model.named_parameters() if p.requires_grad}
    assert asks == {"used.weight", "used.bias", "norm.weight", "norm.bias"}
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_a_network_that_needs_values_is_tried_on_the_cpu():
    class Branches(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum().item() >= 0 else x

    dry_run(Branches(4, 2), "branches", (4,), "change it")
    with pytest.raises(UserError, match=r"branches can't take an input of .*: change it"):
        dry_run(Branches(4, 2), "branches", (5,), "change it")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet81"}, "did you mean resnet"),
        ({"name": "timm/resnet10"}, "did you mean timm/resnet10t"),
        ({"name": "resnet10t"}, "timm/resnet10t?"),
        ({"name": "fcn_resnet50"}, "classification model is called 'fcn_resnet50'"),
        ({"name": "lenet", "image_size": (12, 12)}, "lenet can't take an input of 12x12"),
        ({"name": "inception_v3", "image_size": (32, 32)}, "can't take an input of 32x32"),
        ({"name": "vit_b_32", "image_size": (64, 96)}, "square images only"),
        ({"name": "vit_b_32", "image_size": (60, 60)}, "can't take an input of 60x60"),
        ({"name": "maxvit_t", "image_size": (64, 64)}, "can't take an input of 64x64"),
        ({"name": "syncbnnet", "weights": "default"}, "syncbnnet has no published weights"),
        ({"name": "timm/test_convnext3", "weights": "backbone"}, 'weights="default"'),
        ({"name": "timm/resnet10t", "weights": "nowhere.pth"}, "nowhere.pth is not a file"),
    ],
)
def test_what_does_not_exist_is_answered_in_one_sentence(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        build_classification_model(num_classes=3, **arguments)
    one_sentence(caught)


def test_published_weights_keep_all_but_a_head_of_other_classes(monkeypatch, caplog):
    published = torchvision.models.get_model("googlenet", weights=None, init_weights=False)
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *a, **k: published.state_dict()
    )
    with caplog.at_level(logging.WARNING):
        model = build_classification_model("googlenet", 5, weights="default", image_size=(64, 64))
    assert caplog.text.count("left out") == 1
    assert "fc.weight is (1000, 1024) there and (5, 1024) here" in caplog.text
    assert "aux" not in caplog.text
    torch.testing.assert_close(model.inception5b.state_dict(), published.inception5b.state_dict())
    caplog.clear()
    model = build_classification_model("googlenet", 1000, weights="default", image_size=(64, 64))
    torch.testing.assert_close(model.fc.state_dict(), published.fc.state_dict())
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["googlenet", "timm/test_resnet"])
def test_no_network_says_what_to_do(monkeypatch, name):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    import timm.models

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr(timm.models._builder, "load_pretrained", refuse)
    with pytest.raises(UserError, match=r"Can't fetch .* pass its path as weights") as caught:
        build_classification_model(name, 5, weights="default")
    one_sentence(caught)


def test_weights_of_a_file_and_seed_of_the_rest(tmp_path):
    torch.manual_seed(1)
    source = build_classification_model("timm/test_resnet", 4)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    loaded = build_classification_model(
        "timm/test_resnet", 4, weights=str(tmp_path / "w.safetensors")
    )
    torch.testing.assert_close(loaded.state_dict(), source.state_dict())
    torch.manual_seed(1)
    again = build_classification_model("timm/test_resnet", 4)
    torch.testing.assert_close(again.state_dict(), source.state_dict())


def test_pixels_are_scaled_as_for_the_published_weights():
    for name in ("resnet18", "syncbnnet", "syncbnnet3d", "timm/unheard_of", "unheard_of"):
        assert pixel_scaling(name) == IMAGENET
    assert pixel_scaling("timm/vit_tiny_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert pixel_scaling("r3d_18").mean == pytest.approx((0.43216, 0.394666, 0.37645))


# Clips


@pytest.mark.parametrize("name", [*OWN_VIDEO, "single_frame"])
def test_clips_become_logits_and_every_parameter_learns(name):
    torch.manual_seed(0)
    model = build_video_model(name, 5, clip_size=(8, 64, 64)).train()
    logits = model(torch.randn(2, 3, 8, 64, 64))
    assert logits.shape == (2, 5) and logits.isfinite().all()
    logits.sum().backward()
    assert without_gradient(model) == []
    assert model.eval()(torch.randn(1, 3, 5, 33, 41)).shape == (1, 5)
    norms = {type(m) for m in model.modules() if hasattr(m, "running_mean")}
    assert norms == {nn.BatchNorm2d if name == "single_frame" else nn.BatchNorm3d}
    _, converted = convert_norm(model, "sync_bn", impl="own")
    assert converted


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18", "swin3d_t"])
def test_torchvisions_take_small_clips(name):
    with torch.device("meta"):
        model = build_video_model(name, 5, clip_size=(8, 64, 64))
    assert model(torch.empty(2, 3, 8, 64, 64, device="meta")).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "fits", "too_small"),
    [
        ("mvit_v2_s", (16, 224, 224), (8, 64, 64)),
        ("s3d", (13, 209, 209), (13, 209, 208)),
    ],
)
def test_clips_that_a_model_cannot_take(name, fits, too_small):
    with torch.device("meta"):
        assert build_video_model(name, 5, clip_size=fits)
        with pytest.raises(UserError, match=f"it takes clips of .*{fits[0]} frames") as caught:
            build_video_model(name, 5, clip_size=too_small)
    assert "x".join(map(str, too_small)) in one_sentence(caught)


def test_factorised_convolutions_have_the_width_and_size_of_the_paper():
    block = FactorizedConv(64, 128)
    # The paper's M for t = d = 3, N = 64 → 128.
    assert block[0].conv.out_channels == int(27 * 64 * 128 / (9 * 64 + 3 * 128)) == 230
    for channels in ((3, 16), (64, 64), (64, 128)):
        whole = ConvBNAct(*channels, dims=3).conv.weight.numel()
        parts = sum(conv.conv.weight.numel() for conv in FactorizedConv(*channels))
        assert 0.9 * whole < parts <= whole
    x = torch.randn(1, 64, 5, 9, 9)
    assert FactorizedConv(64, 128, stride=2)(x).shape == (1, 128, 3, 5, 5)
    assert FactorizedConv(64, 128, stride=(1, 2, 2))(x).shape == (1, 128, 5, 5, 5)
    kernels = {m.kernel_size for m in block.modules() if isinstance(m, nn.Conv3d)}
    assert kernels == {(1, 3, 3), (3, 1, 1)}


def test_a_factorised_network_convolves_space_and_time_in_turn():
    model = build_video_model("syncbnnet2plus1d", 5)
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv3d)):
        assert conv.kernel_size in {(1, 3, 3), (3, 1, 1), (1, 1, 1)}
    block = ResidualBlock(8, 8, dims=3, factorized=True)
    x = torch.randn(2, 8, 4, 6, 6)
    torch.testing.assert_close(block(x), F.silu(x))  # starts as its shortcut, like the whole one
    sizes = [
        sum(p.numel() for p in build_video_model(name, 5).parameters())
        for name in ("syncbnnet3d", "syncbnnet2plus1d")
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


def test_single_frame_sees_the_middle_one_only():
    torch.manual_seed(0)
    model = build_video_model("single_frame", 5).eval()
    clip = torch.randn(2, 3, 8, 32, 32)
    other = torch.randn(2, 3, 8, 32, 32)
    other[:, :, 4] = clip[:, :, 4]
    torch.testing.assert_close(model(clip), model(other))
    moved = clip.roll(1, dims=2)
    assert not torch.allclose(model(clip), model(moved))
    motion = build_video_model("syncbnnet3d", 5).eval()
    assert not torch.allclose(motion(clip), motion(other))


def test_an_image_classifier_starts_the_single_frame_model(tmp_path):
    source = SyncBNNet(5)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = build_video_model("single_frame", 5, weights=str(tmp_path / "w.safetensors"))
    assert isinstance(model, SingleFrame)
    torch.testing.assert_close(model.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "r3d18"}, "did you mean r3d_18"),
        ({"name": "resnet18"}, "video model is called 'resnet18'"),
        ({"name": "syncbnnet3d", "weights": "default"}, "such as r2plus1d_18"),
        ({"name": "r3d_18", "weights": "backbone"}, 'weights="default"'),
        ({"name": "syncbnnet3d", "weights": "nowhere.pth"}, "nowhere.pth is not a file"),
    ],
)
def test_video_names_and_weights_that_do_not_exist(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        build_video_model(num_classes=3, **arguments)
    one_sentence(caught)


def test_kinetics_weights_keep_all_but_a_head_of_other_classes(monkeypatch, caplog):
    published = torchvision.models.get_model("mc3_18", weights=None)
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *a, **k: published.state_dict()
    )
    model = build_video_model("mc3_18", 5, weights="default", clip_size=(4, 32, 32))
    torch.testing.assert_close(model.layer4.state_dict(), published.layer4.state_dict())
    assert "fc.weight is (400, 512) there and (5, 512) here" in caplog.text


def test_every_video_model_is_in_the_list():
    others = {"single_frame", "r3d_18", "s3d", "mvit_v2_s", "swin3d_t"}
    assert {*OWN_VIDEO, *others} < set(VIDEO_MODELS)
