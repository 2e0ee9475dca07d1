"""Linear probes: what can be read linearly from a token's features, in an encoder, a teacher, or a layer of the model.

A ridge classifier on standardised features, its penalty chosen by leave-one-out, fitted on the tokens of some images
and asked about those of others.  Text-only supervision discards visual detail, says the paper's hypothesis: then a
probe reads less from the later layers of a baseline than from its encoder.
"""

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
    """Fit one probe and ask it about other images.

    Args:
        features, test_features: (images, N, D).
        labels, test_labels: (images, N), 0 where a token is left out.

    Returns:
        One row per test image that has a labelled token: image (its number), tokens (labelled ones), right, and
        constant, how many of them the most frequent label of the training tokens gets right.

    Raises:
        ValueError: shapes that do not fit, fewer than two labels to learn, or no token to ask about.
    """
    if features.shape[:2] != labels.shape or test_features.shape[:2] != test_labels.shape:
        raise ValueError(f"labels {labels.shape}, {test_labels.shape} for {features.shape}, {test_features.shape}")
    known, asked = labels > 0, test_labels > 0
    classes, counts = np.unique(labels[known], return_counts=True)
    if len(classes) < 2 or not asked.any():
        raise ValueError(
            f"{len(classes)} labels to learn and {asked.sum()} tokens to ask about: a probe has no question"
        )
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
    tables = [
        probe(features, labels[name], test_features, test_labels[name]).assign(probe=name) for name in sorted(labels)
    ]
    return pd.concat(tables, ignore_index=True)


def layer_probes(
    model,
    processor,
    images: Sequence,
    labels: Labels,
    test_images: Sequence,
    test_labels: Labels,
    prompt: str,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Probes of the encoder's features and of the visual tokens in every layer of a LLaVA.

    Args:
        model, processor: as `viral_core.measure.states.stream_states`; the images need one grid of N tokens each.
        prompt: of every image; what stands after `<image>` is not seen by the visual tokens.

    Returns:
        What `probe` returns for each source ("encoder", "model"), layer (0 to L, of the model) and probe, in columns.
    """
    layers = list(range(len(base_llava(model).model.language_model.layers) + 1))
    sides = []
    for pictures in (images, test_images):
        stream = [
            (image.features.float().cpu().numpy(), image.states.float().clamp(-LARGEST, LARGEST).half().cpu().numpy())
            for image in stream_states(model, processor, pictures, prompt, layers, batch_size, "probes")
        ]
        sides.append([np.stack(part) for part in zip(*stream, strict=True)])
    (features, states), (test_features, test_states) = sides
    tables = [probes(features, labels, test_features, test_labels).assign(source="encoder")]
    for layer in layers:
        known, asked = states[:, layer].astype(np.float32), test_states[:, layer].astype(np.float32)
        tables.append(probes(known, labels, asked, test_labels).assign(source="model", layer=layer))
    return pd.concat(tables, ignore_index=True)
