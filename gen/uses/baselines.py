"""Simple detectors of anomalies, beside which a model's scores are judged.

Each is a function of (training examples [M, D...], examples [N, D...], seed) that returns scores,
[N], higher for stranger examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from gen.uses.features import vectors_of

PCA_COMPONENTS = 32
"""Components of `pca_error`, at most."""


def nearest_neighbours(
    training: np.ndarray, examples: np.ndarray, seed: int, neighbours: int = 5
) -> np.ndarray:
    """Return the Euclidean distance to the k-th nearest training example, [N].

    Ramaswamy, Rastogi & Shim 2000, https://doi.org/10.1145/342009.335437, with the k of PyOD.

    Args:
      training: training examples, [M, ...].
      examples: examples to score, [N, ...].
      seed: not used.
      neighbours: k.
    """
    from sklearn.neighbors import NearestNeighbors

    training, examples = vectors_of(training, np.float64), vectors_of(examples, np.float64)
    search = NearestNeighbors(n_neighbors=neighbours).fit(training)
    return search.kneighbors(examples)[0][:, -1]


def pca_distance(training: np.ndarray, examples: np.ndarray, seed: int) -> np.ndarray:
    """Return Σ_i ‖x − v_i‖ / λ_i over the principal directions v_i, [N], as PyOD has it.

    λ_i is the share of the variance along v_i. The sum is over all directions but those without
    variance, and directions of little variance weigh most. PyOD's score is no reconstruction error;
    `pca_error` is one.

    Args:
      training: training examples, [M, ...].
      examples: examples to score, [N, ...].
      seed: not used.
    """
    from scipy.spatial.distance import cdist
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    training, examples = vectors_of(training, np.float64), vectors_of(examples, np.float64)
    scaler = StandardScaler().fit(training)
    fitted = PCA().fit(scaler.transform(training))
    share, directions = np.array(fitted.explained_variance_ratio_), np.array(fitted.components_)
    varies = share > np.finfo(np.float32).eps
    distance = cdist(scaler.transform(examples), directions[varies])
    return (distance / share[varies]).sum(axis=1)


def pca_error(training: np.ndarray, examples: np.ndarray, seed: int) -> np.ndarray:
    """Return the squared error of the projection onto the first principal components, [N].

    Args:
      training: training examples, [M, ...].
      examples: examples to score, [N, ...].
      seed: the seed of the randomised decomposition.
    """
    from sklearn.decomposition import PCA

    training, examples = vectors_of(training, np.float64), vectors_of(examples, np.float64)
    # Fewer components than variables and training rows, so that there is an error.
    components = min(PCA_COMPONENTS, training.shape[1] // 2, len(training) // 2)
    fitted = PCA(max(1, components), random_state=seed).fit(training)
    return ((examples - fitted.inverse_transform(fitted.transform(examples))) ** 2).mean(axis=1)


def isolation_forest(training: np.ndarray, examples: np.ndarray, seed: int) -> np.ndarray:
    """Return the score of an isolation forest of 100 trees, [N].

    Liu, Ting & Zhou 2008, https://doi.org/10.1109/ICDM.2008.17.

    Args:
      training: training examples, [M, ...].
      examples: examples to score, [N, ...].
      seed: the seed of the trees.
    """
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(random_state=seed).fit(vectors_of(training, np.float64))
    return -forest.score_samples(vectors_of(examples, np.float64))


BASELINES: Mapping[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "nearest_neighbours": nearest_neighbours,
    "nearest_neighbour": partial(nearest_neighbours, neighbours=1),
    "pca_distance": pca_distance,
    "pca_error": pca_error,
    "isolation_forest": isolation_forest,
}
"""The detectors by name. `nearest_neighbours` takes the fifth neighbour."""
