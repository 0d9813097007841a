"""Test the data sets: values, splits, decoding, densities, downloads, the cache, damaged files."""

import gzip
import hashlib
import http.server
import itertools
import json
import math
import os
import shutil
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pooch
import pytest
import scipy.io
import scipy.sparse
from conftest import skip_without
from scipy.stats import multivariate_normal

from experiments.experiment import Experiment
from gen import data
from gen.core import UserError
from gen.data import cache, generated, images
from gen.models.autoencoder import Autoencoder
from gen.nets import MLP


def distinct_rows(dataset):
    """Return the set of distinct examples of each split, as bytes."""
    return {name: {row.tobytes() for row in split["x"]} for name, split in dataset.splits.items()}


def split_sizes(dataset):
    return [len(split["x"]) for split in dataset.splits.values()]


def publish(monkeypatch, name, path):
    """Let `path` be the published file of the data set `name`, in the folder `GEN_DATA_DIR`."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(data.FILES, name, data.File(path.name, "http://127.0.0.1:9/", digest))
    monkeypatch.setenv("GEN_DATA_DIR", str(path.parent))


def no_call(*args):
    raise AssertionError("the cache was not used")


# Dataset and decode


def test_digits_have_three_disjoint_splits_stratified_by_class(digits):
    assert digits.shape == (8, 8, 1)
    assert split_sizes(digits) == [1297, 250, 250]
    assert digits.train["x"].max() == digits.format.peak == 16
    assert (digits.format.levels, digits.classes) == (17, 10)
    assert len(set.union(*distinct_rows(digits).values())) == 1797
    for split in digits.splits.values():
        counts = np.bincount(split["label"], minlength=10)
        assert counts.min() > 0.08 * len(split["label"])
    assert data.load("digits").sha256 == digits.sha256


def test_nudged_digits_equal_the_convolutions_of_scikit_learns_example():
    from scipy.ndimage import convolve
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    given: Any = load_digits()
    kernels = np.zeros((5, 3, 3))
    kernels[range(5), [1, 0, 1, 1, 2], [1, 1, 0, 2, 1]] = 1
    moved = np.concatenate(
        [convolve(given.images, kernel[None], mode="constant") for kernel in kernels]
    )
    _, x, _, label = train_test_split(
        moved, np.tile(given.target, 5), test_size=0.2, random_state=0
    )
    dataset = data.load("digits_nudged")
    np.testing.assert_array_equal(dataset.test["x"][..., 0], x)
    np.testing.assert_array_equal(dataset.test["label"], label)
    assert split_sizes(dataset) == [6469, 719, 1797]
    everything = np.concatenate([split["x"][..., 0] for split in dataset.splits.values()])
    assert sorted(map(bytes, everything)) == sorted(map(bytes, moved.astype(np.uint8)))
    assert dataset.train["x"].max() == dataset.format.peak == 16
    assert (dataset.format.levels, dataset.classes) == (17, 10)


def test_classes_count_the_largest_label_of_all_splits():
    x = np.zeros((2, 3), np.uint8)
    train, test = ({"x": x, "label": np.array([0, last], np.int32)} for last in (2, 6))
    assert data.Dataset("a", train, train, test, data.Format()).classes == 7
    assert data.Dataset("a", {"x": x}, {"x": x}, {"x": x}, data.Format()).classes == 0


def test_levels_follow_from_the_peak_unless_x_are_counts_or_they_are_given():
    assert data.Format(255).levels == 256
    assert data.Format(counts=True).levels == 0
    assert data.Format(65_535, levels=0).levels == 0


def test_decode_scales_and_binarises():
    batch = {"x": jnp.array([[0, 4, 8, 16]], jnp.uint8), "label": jnp.array([3])}

    def decode(binarize, key):
        return data.Format(16).decode(batch, key, binarize)

    key = jax.random.key(0)
    np.testing.assert_array_equal(decode("none", key)["x"], [[0, 0.25, 0.5, 1]])
    np.testing.assert_array_equal(decode("threshold", key)["x"], [[0, 0, 0, 1]])
    np.testing.assert_array_equal(decode("none", key)["label"], [3])
    keys = jax.random.split(key, 2000)
    draws = np.asarray(jax.vmap(partial(decode, "dynamic"))(keys)["x"])[:, 0]
    assert set(np.unique(draws)) == {0, 1}
    np.testing.assert_allclose(draws.mean(axis=0), [0, 0.25, 0.5, 1], atol=0.045)  # 4 σ
    assert draws[:, 1].std() > 0


def test_a_split_is_decoded_as_a_whole(digits):
    test = digits.decoded("test")
    np.testing.assert_allclose(test["x"] * 16, digits.test["x"], atol=1e-6)
    assert test["x"].dtype == np.float32
    np.testing.assert_array_equal(test["label"], digits.test["label"])
    binary = [digits.decoded("test", "dynamic", seed)["x"] for seed in (0, 0, 1)]
    assert {*np.unique(binary[0])} == {0, 1}
    np.testing.assert_array_equal(binary[0], binary[1])
    assert np.any(binary[0] != binary[2])


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown data set 'mnits'.*binarized_mnist"):
        data.load("mnits")


# Image sets of tensorflow-datasets


def test_an_absent_set_without_a_network_says_how_to_get_it(tmp_path, monkeypatch):
    import requests

    def no_network(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", no_network)
    monkeypatch.delenv("GEN_DATA_DIR", raising=False)
    with pytest.raises(UserError, match=r"no connection.*TFDS_DATA_DIR.*--data-dir") as caught:
        data.load("mnist", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_without_a_network_is_named_at_once(tmp_path, monkeypatch):
    import requests

    def no_network(url, **kwargs):
        raise requests.ConnectionError(f"no network to {url}")

    write_downloads(tmp_path / "downloads" / "mnist", 20)
    (tmp_path / "downloads" / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setattr(requests, "head", no_network)
    monkeypatch.setattr(requests.Session, "get", no_call)
    monkeypatch.setenv("GEN_DATA_DIR", str(tmp_path / "downloads"))
    with pytest.raises(UserError, match=r"no connection to .*train-labels-idx1-ubyte.gz\)"):
        data.load("mnist", tmp_path / "tfds")


def write_downloads(folder: Path, n: int) -> None:
    """Write files in MNIST's own format, with n random images in each split."""
    folder.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for split in ("train", "t10k"):
        pixels = rng.randint(0, 256, (n, 28, 28)).astype(np.uint8)
        labels = rng.randint(0, 10, n).astype(np.uint8)
        header = np.array([2051, n, 28, 28], ">i4").tobytes()
        path = folder / f"{split}-images-idx3-ubyte.gz"
        path.write_bytes(gzip.compress(header + pixels.tobytes(), compresslevel=1))
        header = np.array([2049, n], ">i4").tobytes()
        path = folder / f"{split}-labels-idx1-ubyte.gz"
        path.write_bytes(gzip.compress(header + labels.tobytes(), compresslevel=1))


def test_a_download_with_another_checksum_is_refused(tmp_path, monkeypatch):
    write_downloads(tmp_path / "downloads" / "mnist", 20)
    monkeypatch.setenv("GEN_DATA_DIR", str(tmp_path / "downloads"))
    with pytest.raises(UserError, match="wrong checksum"):
        data.load("mnist", tmp_path / "tfds")
    assert not (tmp_path / "tfds" / "mnist" / "3.0.1").exists()


@pytest.fixture(scope="module")
def prepared_once(tmp_path_factory):
    """Prepare an `mnist` of 6,000 and 6,000 images, whose downloads pass the check of their
    checksums, and fill the cache with it."""
    from tensorflow_datasets.core.download import download_manager

    folder = tmp_path_factory.mktemp("tiny")
    write_downloads(folder / "downloads" / "mnist", 6_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEN_DATA_DIR", str(folder / "downloads"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(
            download_manager.DownloadManager,
            "_register_or_validate_checksums",
            lambda *args, **kwargs: None,
        )
        data.load("mnist", folder / "tfds")
    return folder


@pytest.fixture
def tiny(prepared_once, tmp_path, monkeypatch):
    """Return the test's own copy of the folder with the tiny `mnist` and its cache.

    Its name has characters that patterns and terminals give a meaning.
    """
    folder = tmp_path / "tiny *[1]"
    shutil.copytree(prepared_once, folder)
    monkeypatch.setenv("GEN_DATA_DIR", str(folder / "downloads"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return folder


def test_a_prepared_set_holds_the_images_and_labels_of_its_download(tiny):
    dataset = data.load("mnist", tiny / "tfds")
    assert split_sizes(dataset) == [1000, 5000, 6000]
    raw = gzip.decompress((tiny / "downloads/mnist/t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((tiny / "downloads/mnist/t10k-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 784)
    expected = {
        image.tobytes(): label
        for image, label in zip(pixels, np.frombuffer(labels, np.uint8, offset=8), strict=True)
    }
    assert {
        image.tobytes(): label
        for image, label in zip(dataset.test["x"], dataset.test["label"], strict=True)
    } == expected


def test_a_second_load_reads_the_cache_alone(tiny, monkeypatch):
    monkeypatch.setattr(images, "read_prepared", no_call)
    data.load("mnist", tiny / "tfds")


def test_a_damaged_cache_is_written_again(tiny):
    before = data.load("mnist", tiny / "tfds").sha256
    (cached,) = (tiny / "cache" / "gen").glob("*/test-x.npy")
    content = bytearray(cached.read_bytes())
    content[1000] ^= 1
    cached.write_bytes(content)
    assert data.load("mnist", tiny / "tfds").sha256 == before
    assert cached.read_bytes() != bytes(content)


def test_a_damaged_prepared_file_is_named(tiny):
    shutil.rmtree(tiny / "cache")
    (shard,) = (tiny / "tfds/mnist/3.0.1").glob("mnist-test.array_record*")
    content = bytearray(shard.read_bytes())
    for i in range(len(content) // 4, len(content) // 2):
        content[i] ^= 255
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"mnist in .* is damaged .*delete that folder") as caught:
        data.load("mnist", tiny / "tfds")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("features", "info"),
    [
        ({"pythonClassName": "evil_module.Image"}, {}),
        ({"featuresDict": {"features": {"x": {"python_class_name": "evil_module.Image"}}}}, {}),
        ({"type": "evil_module.Image", "content": {}}, {}),
        ({}, {"features": {"pythonClassName": "evil_module.Image"}}),
    ],
)
def test_a_class_that_a_prepared_set_names_is_not_imported(features, info, tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("class Image: pass")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(json.dumps(features))
    info = {"name": "mnist", "version": "3.0.1", "fileFormat": "array_record", **info}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"names the class evil_module\.Image") as caught:
        data.load("mnist", tmp_path)
    assert "\n" not in str(caught.value)
    assert "evil_module" not in sys.modules


def test_a_set_that_another_process_prepares_meanwhile_is_taken(tiny, monkeypatch):
    from tensorflow_datasets.core.download import download_manager

    before = data.load("mnist", tiny / "tfds").sha256
    (tiny / "tfds").rename(tiny / "other")

    def examples(*paths):
        shutil.copytree(tiny / "other", tiny / "tfds", dirs_exist_ok=True)
        yield from itertools.islice(images.idx_examples(*paths), 3)

    monkeypatch.setattr(
        download_manager.DownloadManager,
        "_register_or_validate_checksums",
        lambda *args, **kwargs: None,
    )
    monkeypatch.setitem(images.IMAGES, "mnist", images.ImageSet("3.0.1", 255, examples))
    assert data.load("mnist", tiny / "tfds").sha256 == before


def test_a_user_without_a_home_folder_needs_no_cache(tiny, monkeypatch):
    def no_entry(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    assert split_sizes(data.load("mnist", tiny / "tfds")) == [1000, 5000, 6000]
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    with pytest.raises(OSError, match="no home folder for ~/tensorflow_datasets: set HOME"):
        data.load("mnist")
    monkeypatch.delenv("GEN_DATA_DIR")
    with pytest.raises(UserError, match=r"no home folder for ~/\.cache"):
        data.load("uci_dna")


def test_a_cache_whose_json_is_nested_too_deep_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.write_cache("a", {"train": {"x": np.zeros(3)}})
    assert cache.read_cache("a") is not None
    (tmp_path / "gen" / "a" / "sha256.json").write_text("[" * 200_000)
    assert cache.read_cache("a") is None


def test_a_description_that_cannot_be_read_is_damage(tmp_path):
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mnist in .* is damaged .*delete that folder"):
        data.load("mnist", tmp_path)


def test_binarized_text_files_are_read(tmp_path):
    from PIL import Image

    x = np.random.RandomState(0).randint(0, 2, (3, 784))
    path = tmp_path / "a.amat"
    np.savetxt(path, x, fmt="%d")
    for row, example in images.amat_examples(path):
        image = np.asarray(Image.open(example["image"]))
        np.testing.assert_array_equal(image.reshape(-1), x[row])


IMAGE_SETS = {  # split sizes, levels, classes
    "mnist": ([55_000, 5_000, 10_000], 256, 10),
    "fashion_mnist": ([55_000, 5_000, 10_000], 256, 10),
    "binarized_mnist": ([50_000, 10_000, 10_000], 2, 0),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name != "mnist" else ()) for name in IMAGE_SETS],
)
def test_real_image_sets_have_their_published_sizes(name, prepared):
    dataset = data.load(name, prepared)
    assert (split_sizes(dataset), dataset.format.levels, dataset.classes) == IMAGE_SETS[name]
    assert dataset.shape == (28, 28, 1)
    assert dataset.train["x"].max() == dataset.format.peak
    assert ("label" in dataset.train) == (name != "binarized_mnist")
    assert data.load(name, prepared).sha256 == dataset.sha256


@pytest.mark.slow
def test_real_mnist_prepared_from_its_download_is_the_same(prepared, tmp_path, monkeypatch):
    downloads = os.environ.get("GEN_DOWNLOADS_DIR")
    if not downloads:
        pytest.skip("GEN_DOWNLOADS_DIR names no folder with mnist/*.gz as they are downloaded")
    monkeypatch.setenv("GEN_DATA_DIR", downloads)
    made = data.load("mnist", tmp_path)
    assert made.sha256 == data.load("mnist", prepared).sha256


# Sets that are single files


UCI_SIZES = {
    "uci_dna": (180, 1400, 600, 1186),
    "uci_mushrooms": (112, 2000, 500, 5624),
    "uci_nips": (500, 400, 100, 1240),
}


@pytest.mark.parametrize("name", UCI_SIZES)
def test_uci_sets_have_the_published_splits(name):
    skip_without(f"{name}.npz")
    dataset = data.load(name)
    assert (*dataset.shape, *split_sizes(dataset)) == UCI_SIZES[name]
    assert set(np.unique(dataset.train["x"])) == {0, 1}
    assert (dataset.format.peak, dataset.format.levels, dataset.classes) == (1, 2, 0)


SEQUENCES = {  # file, shape, sequences of each split, steps of each split, levels
    "jsb": ("JSB_Chorales.mat", (160, 88), [229, 76, 77], [13807, 4602, 4725], 2),
    "nottingham": ("Nottingham.mat", (1793, 88), [694, 173, 170], [176561, 45513, 44463], 2),
    "letters": ("tinyshakespeare.txt", (1000,), [954, 53, 53], [953622, 52979, 52980], 27),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_have_their_lengths_and_are_zero_from_there_on(name):
    file, shape, sizes, steps, levels = SEQUENCES[name]
    skip_without(file)
    dataset = data.load(name)
    assert dataset.shape == shape
    assert split_sizes(dataset) == sizes
    assert [split["length"].sum() for split in dataset.splits.values()] == steps
    assert dataset.format.levels == levels
    for split in dataset.splits.values():
        behind = np.arange(shape[0])[None] >= split["length"][:, None]
        assert not split["x"][behind].any()
        assert split["x"].max() == dataset.format.peak


def test_piano_rolls_are_read_from_the_cells_of_a_matlab_file(tmp_path, monkeypatch):
    rolls = [np.eye(88, dtype=np.uint8)[:length] for length in (3, 5, 2)]
    cells = {}
    for split, roll in zip(("train", "valid", "test"), rolls, strict=True):
        cells[f"{split}data"] = np.empty((1, 1), object)
        cells[f"{split}data"][0, 0] = roll
    path = tmp_path / "JSB_Chorales.mat"
    scipy.io.savemat(path, cells)
    publish(monkeypatch, "jsb", path)
    dataset = data.load("jsb")
    assert dataset.shape == (5, 88)
    np.testing.assert_array_equal(dataset.train["x"][0, :3], rolls[0])
    assert dataset.train["length"] == [3]
    assert dataset.test["x"].sum() == 2


def test_news_are_documents_of_100_words():
    skip_without("20news_w100.mat")
    dataset = data.load("news")
    assert split_sizes(dataset) == [13138, 1578, 1526]
    assert [len(rows) for rows in distinct_rows(dataset).values()] == [8213, 1027, 1027]
    assert len(set.union(*distinct_rows(dataset).values())) == 10267
    assert (dataset.shape, dataset.format.peak, len(dataset.format.words)) == ((100,), 1, 100)
    assert (dataset.format.levels, dataset.classes) == (2, 4)
    counts = sum(np.bincount(split["label"]) for split in dataset.splits.values())
    np.testing.assert_array_equal(counts, [4605, 3519, 2657, 5461])
    assert sum(split["x"].sum() for split in dataset.splits.values()) == 65451
    for label, word in enumerate(("windows", "hockey", "nasa", "god")):  # comp, rec, sci, talk
        labels = dataset.train["label"][
            dataset.train["x"][:, dataset.format.words.index(word)] == 1
        ]
        assert np.bincount(labels).argmax() == label


def test_news_with_groups_and_with_foreign_postings_have_the_splits_of_news():
    skip_without("20news_w100.mat")
    news, joint, foreign = (data.load(name) for name in ("news", "news_groups", "news_foreign"))
    for split, rows in joint.splits.items():
        np.testing.assert_array_equal(rows["x"][:, :100], news.splits[split]["x"])
        np.testing.assert_array_equal(rows["x"][:, 100:].argmax(1), news.splits[split]["label"])
        assert (rows["x"][:, 100:].sum(1) == 1).all()
    assert joint.format.words[-4:] == joint.format.labels == ("comp", "rec", "sci", "talk")
    assert split_sizes(foreign) == [5269, 648, 991]
    assert not foreign.train["label"].any()
    assert not foreign.validation["label"].any()
    assert foreign.test["label"].sum() == 366
    assert all(rows["x"].sum(1).min() == 3 for rows in foreign.splits.values())


def test_no_document_of_news_is_in_two_splits(tmp_path, monkeypatch):
    """Check a file in the published format in which most rows repeat."""
    rng = np.random.RandomState(0)
    x = rng.randint(0, 2, (100, 9)).astype(np.uint8)[rng.randint(0, 100, 400)]
    label = rng.randint(1, 5, 400)
    words = np.array([[f"word{d}" for d in range(9)]], object)
    path = tmp_path / "20news_w100.mat"
    documents = scipy.sparse.csc_matrix(x.T)
    scipy.io.savemat(path, {"documents": documents, "newsgroups": label, "wordlist": words})
    publish(monkeypatch, "news", path)
    dataset = data.load("news")
    rows = distinct_rows(dataset)
    distinct = len({row.tobytes() for row in x})
    assert sum(map(len, rows.values())) == len(set.union(*rows.values())) == distinct
    assert len(rows["test"]) == len(rows["validation"]) == round(distinct / 10)
    labelled_rows = [
        (row.tobytes(), row_label)
        for split in dataset.splits.values()
        for row, row_label in zip(split["x"], split["label"], strict=True)
    ]
    expected = zip([row.tobytes() for row in x], label - 1, strict=True)
    assert sorted(labelled_rows) == sorted(expected)
    assert dataset.format.words == tuple(f"word{d}" for d in range(9))


def test_earthquakes_are_the_series_of_the_textbook():
    dataset = data.load("earthquakes")
    assert dataset.shape == (107, 1)
    assert (dataset.format.counts, dataset.format.levels, dataset.format.peak) == (True, 0, 1)
    counts = dataset.train["x"][0, :, 0]
    assert (counts[0], counts[-1], counts.max(), counts.sum()) == (13, 11, 41, 2072)


# Sets with a known density


def test_the_density_of_eight_gaussians_integrates_to_one_and_has_its_entropy():
    middle = (jnp.arange(400) + 0.5) / 400
    x = jnp.stack(jnp.meshgrid(middle, middle), axis=-1)
    log_p = np.asarray(data.eight_gaussians_log_prob(x), np.float64)
    p = np.exp(log_p) / log_p.size
    np.testing.assert_allclose(p.sum(), 1, atol=1e-5)
    entropy = math.log(8) + math.log(2 * math.pi * math.e * 0.02**2)
    np.testing.assert_allclose(-(p * log_p).sum(), entropy, atol=1e-4)
    centre = data.eight_gaussians_log_prob(jnp.array([0.5, 0.85]))
    np.testing.assert_allclose(centre, -math.log(8 * 2 * math.pi * 0.02**2), rtol=1e-5)


def test_eight_gaussians_are_drawn_from_their_density():
    """Check the moments within 4 σ, and that every load on every machine has the same points."""
    dataset = data.load("eight_gaussians")
    expected = "d7c904f9851a28996839b1dbc5c14a2c8d2939d18e96bdaff18a019821e08320"
    assert dataset.sha256 == data.load("eight_gaussians").sha256 == expected
    assert split_sizes(dataset) == [20_000, 2_000, 5_000]
    assert (dataset.shape, dataset.train["x"].dtype, dataset.format.peak) == (
        (2,),
        np.uint16,
        65_535,
    )
    assert (dataset.format.levels, dataset.classes) == (0, 8)
    assert dataset.log_prob is data.eight_gaussians_log_prob

    stored = np.concatenate([split["x"] for split in dataset.splits.values()])
    batch = {"x": jnp.asarray(stored)}
    decoded = dataset.format.decode(batch, jax.random.key(0))["x"]
    np.testing.assert_array_equal(np.round(decoded * 65_535.0), stored)
    log_density = np.asarray(jax.jit(data.eight_gaussians_log_prob)(decoded))

    entropy = math.log(8) + math.log(2 * math.pi * math.e * 0.02**2)
    bounds = [20_000, 22_000]
    for split, x, log_p in zip(
        dataset.splits.values(),
        np.split(np.asarray(decoded), bounds),
        np.split(log_density, bounds),
        strict=True,
    ):
        n = len(x)
        counts = np.bincount(split["label"])
        np.testing.assert_allclose(counts / n, 1 / 8, atol=4 * math.sqrt(7 / 64 / n))
        z = (x - data.CENTRES[split["label"]]) / data.DEVIATION
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=4 / math.sqrt(n))
        np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=4 * math.sqrt(2 / n))
        assert abs(log_p.mean() + entropy) < 4 * log_p.std() / math.sqrt(n)


def test_bricks_are_cut_from_the_photograph_of_scikit_image():
    skip_without("brick.png")
    skip_without("grass.png")
    skip_without("gravel.png")
    dataset = data.load("textures_brick")
    assert split_sizes(dataset) == [4_000, 500, 700]
    assert dataset.test["defects"].shape == dataset.test["x"].shape


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_density_of_regimes_equals_the_sum_over_all_state_paths(steps):
    """Check p(x) = Σ_z p(z_1) N(x_1; z_1) Π_t p(z_t | z_t−1) N(x_t; z_t), over 3^T paths."""
    x = np.random.default_rng(0).uniform(-3, 3, (2, 4, steps, 2))
    emission = np.stack(
        [
            multivariate_normal(mean, covariance).pdf(x).reshape(x.shape[:-1])
            for mean, covariance in zip(
                generated.REGIME_MEANS, generated.REGIME_COVARIANCES, strict=True
            )
        ]
    )
    p = np.zeros((2, 4))
    for path in itertools.product(range(3), repeat=steps):
        term = np.full((2, 4), 1 / 3)
        for previous, state in itertools.pairwise(path):
            term *= 0.95 if state == previous else 0.025
        for t, state in enumerate(path):
            term *= emission[state, :, :, t]
        p += term
    log_p = data.regimes_log_prob(x)
    assert log_p.dtype == np.float64
    np.testing.assert_allclose(log_p, np.log(p), rtol=1e-12)


def test_regimes_are_drawn_from_their_law():
    """Check E x_t, E x_t x_tᵀ and E x_t x_t+1ᵀ within 4 σ over the 300 independent sequences."""
    dataset = data.load("regimes")
    expected = "786c1913b85864ad4f57481d12d55859ab08bb449a4c1e7d6448a28a289bdc01"
    assert dataset.sha256 == data.load("regimes").sha256 == expected
    assert split_sizes(dataset) == [200, 50, 50]
    assert (dataset.shape, dataset.train["x"].dtype, dataset.format.peak) == (
        (100, 2),
        np.float32,
        1,
    )
    assert (dataset.format.levels, dataset.format.counts, dataset.classes) == (0, False, 0)
    assert dataset.log_prob is data.regimes_log_prob
    for split in dataset.splits.values():
        assert split["length"].dtype == np.int32
        assert (split["length"] == 100).all()

    log_p = data.regimes_log_prob(dataset.test["x"])
    np.testing.assert_allclose(
        [-log_p.mean(), log_p.std() / math.sqrt(50)], [147.8, 3.0], atol=0.05
    )

    x = np.concatenate([split["x"] for split in dataset.splits.values()]).astype(np.float64)
    means, covariances = generated.REGIME_MEANS, generated.REGIME_COVARIANCES
    second = covariances + means[:, :, None] * means[:, None, :]
    transition = np.full((3, 3), 0.025) + 0.925 * np.eye(3)
    successive = np.einsum("ij,ia,jb->ab", transition / 3, means, means)
    for of_sequence, moment in (
        (x.mean(axis=1), means.mean(axis=0)),
        (np.einsum("nta,ntb->nab", x, x) / 100, second.mean(axis=0)),
        (np.einsum("nta,ntb->nab", x[:, :-1], x[:, 1:]) / 99, successive),
    ):
        stderr = of_sequence.std(axis=0) / math.sqrt(len(x))
        assert (np.abs(of_sequence.mean(axis=0) - moment) < 4 * stderr).all()


def test_decode_leaves_the_floats_of_regimes_unchanged():
    x = data.load("regimes").test["x"]
    batch = {"x": jnp.asarray(x)}
    decoded = data.load("regimes").format.decode(batch, jax.random.key(0))
    np.testing.assert_array_equal(decoded["x"], x)


# Downloads


def test_a_damaged_local_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("GEN_DATA_DIR", str(tmp_path))
    (tmp_path / "uci_dna.npz").write_bytes(b"something else")
    with pytest.raises(UserError, match="is damaged"):
        data.load("uci_dna")


def test_a_file_that_cannot_be_downloaded_is_an_error_of_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("GEN_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="could not be downloaded") as error:
        data.fetch("absent.bin", "http://127.0.0.1:9/absent.bin", "0" * 64)
    assert "\n" not in str(error.value)


def test_a_download_is_checked_and_cached(tmp_path, monkeypatch):
    """Download from a local server, then load the file again after the server has stopped."""
    content = b"some bytes"
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file.bin").write_bytes(content)
    monkeypatch.delenv("GEN_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    handler = partial(QuietHandler, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/file.bin"
    with pytest.raises(UserError, match="could not be downloaded"):
        data.fetch("other.bin", url, "0" * 64)
    sha256 = hashlib.sha256(content).hexdigest()
    assert data.fetch("file.bin", url, sha256).read_bytes() == content
    server.shutdown()
    server.server_close()
    assert data.fetch("file.bin", url, sha256).read_bytes() == content


def test_a_notebook_without_widgets_shows_no_warning_of_pooch(tmp_path, monkeypatch):
    line = "import warnings; warnings.warn('IProgress not found. Please update jupyter')"
    (tmp_path / "pooch.py").write_text(f"{line}\nfile_hash = lambda path: 'sum'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, pooch.__name__)
    monkeypatch.setenv("GEN_DATA_DIR", str(tmp_path))
    assert data.fetch("pooch.py", "", "sum") == tmp_path / "pooch.py"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serve files without writing a log."""

    def log_message(self, *_):
        pass


def test_stacked_images_are_the_batch_in_a_random_order_for_each_channel():
    format = data.Format(peak=255, stack=3)
    x = jnp.arange(20, dtype=jnp.uint8).reshape(20, 1, 1, 1)
    stacked = format.decode({"x": x}, jax.random.key(0))["x"]
    assert stacked.shape == (20, 1, 1, 3)
    orders = np.asarray(stacked * 255).reshape(20, 3).round().T
    for order in orders:
        assert sorted(order) == list(range(20))
    assert len({tuple(order) for order in orders}) == 3
    again = format.decode({"x": x}, jax.random.key(1))["x"]
    assert not np.array_equal(stacked, again)


def test_a_stack_of_no_images_and_a_stack_with_labels_are_refused():
    for stack in (0, -2):
        with pytest.raises(UserError, match=f"stack is {stack}, must be positive"):
            data.Format(stack=stack)
    with pytest.raises(UserError, match="stacked images have no labels"):
        data.Format(stack=3, labels=("cat", "dog"))
    batch = {"x": np.zeros((4, 2, 2, 1)), "label": np.zeros(4, int)}
    with pytest.raises(UserError, match="a label is of a single image"):
        data.Format(stack=3).decode(batch, jax.random.key(0))


def test_a_model_trains_on_stacked_images_and_is_evaluated_on_them(digits):
    splits = {name: {"x": rows["x"]} for name, rows in digits.splits.items()}
    stacked = replace(digits, **splits, format=data.Format(peak=16, stack=3))
    model = Autoencoder(encoder=MLP((4,)), decoder=MLP(()))
    experiment = Experiment(model, batch_size=20, steps=2, report_every=2).on(stacked)
    assert experiment.model.shape == (8, 8, 3)
    *_, last = experiment.fit(stacked)
    assert last.metrics
    assert np.isfinite(last.metrics["loss"])
    rows, key = experiment.decoded(stacked, "test", seed=0)
    assert rows["x"].shape == (len(digits.test["x"]), 8, 8, 3)
    assert np.isfinite(experiment.model.evaluate(last.carry.state, rows, key)["mse"].value)


def test_stacked_mnist_has_three_channels_and_no_labels(tiny):
    dataset = data.load("stacked_mnist", tiny / "tfds")
    assert dataset.shape == (28, 28, 3)
    assert dataset.train["x"].shape[1:] == (28, 28, 1)
    assert dataset.classes == 0
