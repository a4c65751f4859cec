"""Pretraining on mixtures of clean and other text, and what it does to a model: the paper's main experiment."""

from entangle.composition import pretrain
from entangle.composition.attack import Attack
from entangle.composition.claims import Claim, claims
from entangle.composition.comparison import Comparison
from entangle.composition.displacement import displacement
from entangle.composition.experiment import Composition, TrainedModel, run, run_apart, run_each
from entangle.composition.measurement import Measurement
from entangle.composition.pairs import Pairs, PreferencePairs
from entangle.composition.plan import Plan
from entangle.composition.posttraining import PostTraining, posttrain
from entangle.composition.pretrain import new_model
from entangle.composition.recipe import Recipe, Variant, demo_recipe
from entangle.composition.red_teaming import attacks, attacks_by_share
from entangle.composition.sources import Labelled, Source
from entangle.composition.tokenizer import train_tokenizer
from entangle.composition.training import Training

__all__ = [
    "Attack",
    "Claim",
    "Comparison",
    "Composition",
    "Labelled",
    "Measurement",
    "Pairs",
    "Plan",
    "PostTraining",
    "PreferencePairs",
    "Recipe",
    "Source",
    "TrainedModel",
    "Training",
    "Variant",
    "attacks",
    "attacks_by_share",
    "claims",
    "demo_recipe",
    "displacement",
    "new_model",
    "posttrain",
    "pretrain",
    "run",
    "run_apart",
    "run_each",
    "train_tokenizer",
]
