"""Pretraining on mixtures of clean and other text, and what it does to a model: the paper's main experiment."""

from entangle.composition.comparing.attacks import attacks, attacks_by_share
from entangle.composition.comparing.claims import Claim, claims
from entangle.composition.comparing.comparison import ALL, PLAIN, Comparison
from entangle.composition.comparing.displacement import displacement
from entangle.composition.comparing.foretold import CHOSEN, foretold_by_share
from entangle.composition.experiment import run, run_apart, run_each
from entangle.composition.folder import check_folder
from entangle.composition.plan import Plan
from entangle.composition.recipe.attack import Attack
from entangle.composition.recipe.measurement import Measurement
from entangle.composition.recipe.pairs import Pairs, PreferencePairs
from entangle.composition.recipe.recipe import Cell, Recipe, Variant, demo_recipe
from entangle.composition.recipe.sources import Labelled, Source
from entangle.composition.recipe.training import Training
from entangle.composition.trained import Composition, TrainedModel
from entangle.composition.training import pretrain
from entangle.composition.training.posttraining import PostTraining, posttrain
from entangle.composition.training.pretrain import new_model
from entangle.composition.training.processes import Processes, launch, launch_apart
from entangle.composition.training.tokenizer import train_tokenizer

__all__ = [
    "ALL",
    "CHOSEN",
    "PLAIN",
    "Attack",
    "Cell",
    "Claim",
    "Comparison",
    "Composition",
    "Labelled",
    "Measurement",
    "Pairs",
    "Plan",
    "PostTraining",
    "PreferencePairs",
    "Processes",
    "Recipe",
    "Source",
    "TrainedModel",
    "Training",
    "Variant",
    "attacks",
    "attacks_by_share",
    "check_folder",
    "claims",
    "demo_recipe",
    "displacement",
    "foretold_by_share",
    "launch",
    "launch_apart",
    "new_model",
    "posttrain",
    "pretrain",
    "run",
    "run_apart",
    "run_each",
    "train_tokenizer",
]
