"""The settings of a run: the part of the options that decides its result."""

from __future__ import annotations

from dataclasses import dataclass

LOSSES = ("ce", "gloss", "ce+gloss")
GRAPHS = ("batch", "corpus")
LABELED_FRACTION = 0.7
# Defaults of documents of one's own, and of the demo, which must end in two to three minutes on two cores with AVX2.
# An epoch takes about 16 s there, against 60 s for 64 tokens and all layers.
EPOCHS, DEMO_EPOCHS = 5, 3
MAX_LENGTH, DEMO_MAX_LENGTH = 64, 32
DEMO_TRAIN_LAYERS = 2
# A batch of 64 has four documents of each of the demo's 17 classes: the graph of all documents serves better.
GRAPH, DEMO_GRAPH = "batch", "corpus"


@dataclass(frozen=True)
class Settings:
    """What a run's result depends on, besides its documents. Saved with the run; --resume needs the same."""

    model: str
    pooling: str
    loss: str
    graph: str
    lam: float
    sigma: str
    labeled_fraction: float | None
    neighbors: int | None
    class_weights: str
    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    max_length: int
    train_layers: int | None
    patience: int
    precision: str
    seed: int
