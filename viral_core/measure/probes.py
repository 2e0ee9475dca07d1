"""Linear probes: what can be read linearly from a token's features, in an encoder, a teacher, or a model's layer."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from viral_core.measure.states import stream_states
from viral_core.tap import base_llava

PENALTIES = np.logspace(-1, 4, 6)
LARGEST = 65504  # of half precision, in which the states of all images are held

Labels = Mapping[str, np.ndarray]  # of each probe (images, N) integers; 0 where it has nothing to ask of a token


def probe(features: np.ndarray, labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray) -> pd.DataFrame:
    """A ridge classifier, fitted on features (images, N, D) and labels (images, N), 0 where a token is left out.

    Features are standardised, the penalty is chosen by leave-one-out. Returns one row per test image that has a
    labelled token: image (its number), tokens (labelled ones), right, and constant, how many of them the most frequent
    label of the training tokens gets right. ValueError for shapes that do not fit, or where there is no question.
    """
    if features.shape[:2] != labels.shape or test_features.shape[:2] != test_labels.shape:
        raise ValueError(f"labels {labels.shape}, {test_labels.shape} for {features.shape}, {test_features.shape}")
    known, asked = labels > 0, test_labels > 0
    classes, counts = np.unique(labels[known], return_counts=True)
    if len(classes) < 2 or not asked.any():
        raise ValueError(f"{len(classes)} labels to learn, {asked.sum()} tokens to ask about: a probe has no question")
    classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=PENALTIES))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Singular matrix|Ill-conditioned")
        classifier.fit(features[known], labels[known])
    right = np.zeros(test_labels.shape, bool)
    right[asked] = classifier.predict(test_features[asked]) == test_labels[asked]
    constant = asked & (test_labels == classes[counts.argmax()])
    table = pd.DataFrame({"tokens": asked.sum(1), "right": right.sum(1), "constant": constant.sum(1)})
    return table.rename_axis("image").reset_index().query("tokens > 0")


def probes(features: np.ndarray, labels: Labels, test_features: np.ndarray, test_labels: Labels) -> pd.DataFrame:
    """`probe` for each kind of label, named in a column `probe`."""
    tables = {name: probe(features, labels[name], test_features, test_labels[name]) for name in sorted(labels)}
    return pd.concat([table.assign(probe=name) for name, table in tables.items()], ignore_index=True)


def layer_probes(
    model, processor, images: Sequence, labels: Labels, test_images: Sequence, test_labels: Labels, prompt: str
) -> pd.DataFrame:
    """`probe` of each source ("encoder", "model"), layer (0 to L, of the model) and kind of label, named in columns.

    The images need one grid of N tokens each; `prompt` is of every image.
    """
    layers = list(range(len(base_llava(model).model.language_model.layers) + 1))
    sides = []
    for pictures in (images, test_images):
        stream = [
            (image.features.float().cpu().numpy(), image.states.float().clamp(-LARGEST, LARGEST).half().cpu().numpy())
            for image in stream_states(model, processor, pictures, prompt, layers, 32, "probes")
        ]
        sides.append([np.stack(part) for part in zip(*stream, strict=True)])
    (features, states), (test_features, test_states) = sides
    tables = [probes(features, labels, test_features, test_labels).assign(source="encoder")]
    for layer in layers:
        known, asked = states[:, layer].astype(np.float32), test_states[:, layer].astype(np.float32)
        tables.append(probes(known, labels, asked, test_labels).assign(source="model", layer=layer))
    return pd.concat(tables, ignore_index=True)
