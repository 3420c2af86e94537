"""The step between building a model and training it: its normalisation, device and layout."""

import torch
from accelerate import Accelerator
from torch import nn

from engine.options import TrainingOptions
from engine.task import Task
from errors import UserError
from norm import NormChoice, NormError, choose_norm, convert_norm, exchange_locally

MEMORY_FORMATS = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}


def build_model(task: Task, seed: int) -> nn.Module:
    """The task's network, whose random weights are the same on every process."""
    torch.manual_seed(seed)
    return task.build_model()


def prepare_model(
    accelerator: Accelerator, model: nn.Module, batch_size: int, options: TrainingOptions
) -> tuple[nn.Module, NormChoice]:
    """Convert the model's normalisation as ``--norm`` says, and move the model to the device.

    This has to come before DDP wraps the model and before an optimizer holds its parameters.

    Args:
        accelerator: joined with the other processes.
        model: with the layers that its builder gave it.
        batch_size: samples per process and forward pass.
        options: norm, sync_bn_impl, sync_bn_group_size, double, channels_last.

    Returns:
        The model, and which normalisation was chosen and why.
    """
    norm = choose_norm(options.norm, model, accelerator.num_processes, batch_size)
    accelerator.print(f"Normalisation: {norm.kind}. {norm.reason}")
    if norm.kind != "none":
        group_size = options.sync_bn_group_size or None
        try:
            model, _ = convert_norm(
                model, norm.kind, impl=options.sync_bn_impl, group_size=group_size
            )
        except NormError as error:
            raise UserError(f"--norm {norm.kind}: {error}") from None
    if norm.kind == "sync_bn" and accelerator.device.type == "cpu" and not options.compile:
        exchange_locally()
    model.to(accelerator.device, torch.float64 if options.double else torch.float32)
    if options.channels_last:
        use_channels_last(model)
    return model, norm


def use_channels_last(model: nn.Module) -> None:
    """Give the convolutions the channels-last memory format, in place."""
    for module in model.modules():
        if type(module) in MEMORY_FORMATS:
            module.to(memory_format=MEMORY_FORMATS[type(module)])
