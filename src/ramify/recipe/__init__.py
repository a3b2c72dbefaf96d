"""The recipe: all settings of a run, as typed and validated models with one docstring per key.

A recipe is a YAML file. Unknown keys are errors that name the nearest known key. A recipe is immutable after parsing.
"""

from ramify.recipe.data import DataOptions
from ramify.recipe.encoder import EncoderOptions, encoder_class, encoder_kinds
from ramify.recipe.finetune import FinetuneOptions, Scale
from ramify.recipe.load import RECIPES, load_recipe, parse_recipe
from ramify.recipe.model import ForceHeadOptions, HeadOptions, ModelOptions
from ramify.recipe.parallel import MachineOptions, ParallelOptions
from ramify.recipe.recipe import Recipe
from ramify.recipe.training import ObjectiveOptions, OptimizerOptions, ResumeOptions, ScheduleOptions, TrainOptions

__all__ = [
    "RECIPES",
    "DataOptions",
    "EncoderOptions",
    "FinetuneOptions",
    "ForceHeadOptions",
    "HeadOptions",
    "MachineOptions",
    "ModelOptions",
    "ObjectiveOptions",
    "OptimizerOptions",
    "ParallelOptions",
    "Recipe",
    "ResumeOptions",
    "Scale",
    "ScheduleOptions",
    "TrainOptions",
    "encoder_class",
    "encoder_kinds",
    "load_recipe",
    "parse_recipe",
]
