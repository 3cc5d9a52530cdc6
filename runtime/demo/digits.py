"""The data: scikit-learn's 1,797 handwritten digits, split once and for all.

Owns: the split into training and test images, the same for every model and every run.
Must not: train, or be imported by the traffic process (it is given its images).
"""

import importlib
from dataclasses import dataclass

import torch

from runtime.demo.errors import DemoFailed

TEST_IMAGES = 360
"""A fifth of the data set, never trained on; every request shows one of these."""

SPLIT_SEED = 20
"""Only the split depends on it: the test images are the same whatever `--seed` is."""

BRIGHTEST = 16.0
"""The data set's pixels are counts from 0 to 16."""


@dataclass(frozen=True, slots=True)
class Digits:
    """Images as rows of 64 floats in [0, 1], labels as int64 digits."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def read_digits() -> Digits:
    """The data set from scikit-learn's own files; nothing is fetched."""
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise DemoFailed(
            "the demo trains on scikit-learn's digits: pip install 'hotset[demo]'"
        ) from error
    bunch = datasets.load_digits()
    images = torch.as_tensor(bunch.data, dtype=torch.float32) / BRIGHTEST
    labels = torch.as_tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(
        len(images), generator=torch.Generator().manual_seed(SPLIT_SEED)
    )
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Digits(images[train], labels[train], images[test], labels[test])
