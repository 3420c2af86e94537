"""What comes before training: the data, the network, and this process's stage of it."""

import dataclasses

import torch
from torch import nn

from data.faults import Faults
from models.classification import build_classification_model
from models.weights import NAMED_WEIGHTS, refuse_incomplete
from norm import convert_norm
from pipeline.cut import Cut, Stage, units_of
from pipeline.options import PipelineOptions
from pipeline.schedule import Place
from tasks.classification.rows import ClassificationData
from tasks.classification.sources import load_data as load_classification_data


def load_data(options: PipelineOptions, faults: Faults | None = None) -> ClassificationData:
    """Find the data set that the options name; nothing is decoded yet."""
    # The options of both scripts have the same names; there an image size is a list.
    options = dataclasses.replace(options, image_size=list(options.size))
    return load_classification_data(options, faults)


def build_model(options: PipelineOptions, num_classes: int) -> nn.Module:
    """The uncut network, in host memory; its random weights are the same on every process.

    Raises:
        UserError: unknown or unfit weights; with ``--eval_only``, weights of a part only.
    """
    torch.manual_seed(options.seed)
    model = build_classification_model(
        options.model, num_classes, weights=options.weights, image_size=options.size
    )
    if options.eval_only and options.resume == "never" and options.weights not in NAMED_WEIGHTS:
        refuse_incomplete(model, options.weights)
    return model


def take_stage(model: nn.Module, cut: Cut, place: Place, precision: str) -> Stage:
    """This process's stage of a network (a collective where there are several pipelines).

    Args:
        model: the uncut network; its normalisation layers may be exchanged.
        cut: where it is cut.
        place: of this process.
        precision: Accelerate's mixed precision, no or bf16.
    """
    if place.replicas > 1:
        # The whole network on every process, since making groups takes all of them.
        model, _ = convert_norm(model, "sync_bn", impl="own", group_size=place.replicas)
    units = units_of(model)[cut.units(place.stage)]
    return Stage(units, torch.bfloat16 if precision == "bf16" else None)
