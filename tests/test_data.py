"""Data: splits, binarisation, preparing from a download, the cache, and what is damaged."""

import gzip
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen import data
from gen.core import UserError

SIZES = {
    "mnist": (55_000, 5_000, 10_000),
    "fashion_mnist": (55_000, 5_000, 10_000),
    "binarized_mnist": (50_000, 10_000, 10_000),
}


def fingerprints(dataset):
    return {name: {row.tobytes() for row in split["x"]} for name, split in dataset.splits.items()}


def test_digits_are_three_disjoint_stratified_splits(digits):
    assert digits.shape == (8, 8, 1)
    assert [len(split["x"]) for split in digits.splits.values()] == [1297, 250, 250]
    assert digits.train["x"].max() == digits.peak == 16
    assert len(set.union(*fingerprints(digits).values())) == 1797
    for split in digits.splits.values():
        counts = np.bincount(split["label"], minlength=10)
        assert counts.min() > 0.08 * len(split["label"])
    assert data.load("digits").sha256 == digits.sha256


def test_decode_scales_and_binarises():
    batch = {"x": jnp.array([[0, 4, 8, 16]], jnp.uint8), "label": jnp.array([3])}

    def decode(binarize, key=0):
        return data.decode(batch, jax.random.key(key), peak=16, binarize=binarize)

    np.testing.assert_array_equal(decode("none")["x"], [[0, 0.25, 0.5, 1]])
    np.testing.assert_array_equal(decode("threshold")["x"], [[0, 0, 0, 1]])
    np.testing.assert_array_equal(decode("none")["label"], [3])
    draws = np.stack([decode("dynamic", key)["x"][0] for key in range(2000)])
    assert set(np.unique(draws)) == {0, 1}
    np.testing.assert_allclose(draws.mean(axis=0), [0, 0.25, 0.5, 1], atol=0.045)  # 4 σ
    assert draws[:, 1].std() > 0


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown data set 'mnits'.*binarized_mnist"):
        data.load("mnits")


def test_absent_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    import requests

    def no_network(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", no_network)
    monkeypatch.delenv("GEN_DATA_DIR", raising=False)
    with pytest.raises(UserError, match=r"no connection.*TFDS_DATA_DIR.*--data-dir") as caught:
        data.load("mnist", tmp_path)
    assert "\n" not in str(caught.value)


def small_downloads(folder: Path, n: int) -> None:
    """Files in MNIST's own format, with n random images a split."""
    folder.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for split in ("train", "t10k"):
        images = rng.randint(0, 256, (n, 28, 28)).astype(np.uint8)
        labels = rng.randint(0, 10, n).astype(np.uint8)
        header = np.array([2051, n, 28, 28], ">i4").tobytes()
        path = folder / f"{split}-images-idx3-ubyte.gz"
        path.write_bytes(gzip.compress(header + images.tobytes()))
        header = np.array([2049, n], ">i4").tobytes()
        path = folder / f"{split}-labels-idx1-ubyte.gz"
        path.write_bytes(gzip.compress(header + labels.tobytes()))


def test_a_download_with_another_checksum_is_refused(tmp_path, monkeypatch):
    small_downloads(tmp_path / "downloads" / "mnist", 20)
    monkeypatch.setenv("GEN_DATA_DIR", str(tmp_path / "downloads"))
    with pytest.raises(UserError, match="wrong checksum"):
        data.load("mnist", tmp_path / "tfds")
    assert not (tmp_path / "tfds" / "mnist" / "3.0.1").exists()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A prepared `mnist` of 6,000 and 6,000 images whose downloads pass the check; its folder."""
    from tensorflow_datasets.core.download import download_manager

    small_downloads(tmp_path / "downloads" / "mnist", 6_000)
    monkeypatch.setenv("GEN_DATA_DIR", str(tmp_path / "downloads"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        download_manager.DownloadManager,
        "_register_or_validate_checksums",
        lambda *args, **kwargs: None,
    )
    data.load("mnist", tmp_path / "tfds")
    return tmp_path


def test_prepared_set_holds_what_the_download_holds(tiny):
    dataset = data.load("mnist", tiny / "tfds")
    assert [len(split["x"]) for split in dataset.splits.values()] == [1000, 5000, 6000]
    raw = gzip.decompress((tiny / "downloads/mnist/t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((tiny / "downloads/mnist/t10k-labels-idx1-ubyte.gz").read_bytes())
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 784)
    expected = {
        image.tobytes(): label
        for image, label in zip(images, np.frombuffer(labels, np.uint8, offset=8), strict=True)
    }
    assert {
        image.tobytes(): label
        for image, label in zip(dataset.test["x"], dataset.test["label"], strict=True)
    } == expected


def test_second_load_reads_the_cache_alone(tiny, monkeypatch):
    def fail(*args):
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(data, "_read_prepared", fail)
    data.load("mnist", tiny / "tfds")


def test_damaged_cache_is_made_anew(tiny):
    before = data.load("mnist", tiny / "tfds").sha256
    (cached,) = (tiny / "cache" / "gen").glob("*/test-x.npy")
    content = bytearray(cached.read_bytes())
    content[1000] ^= 1
    cached.write_bytes(content)
    assert data.load("mnist", tiny / "tfds").sha256 == before
    assert cached.read_bytes() != bytes(content)


def test_damaged_prepared_file_is_named(tiny):
    import shutil

    shutil.rmtree(tiny / "cache")
    (shard,) = (tiny / "tfds/mnist/3.0.1").glob("mnist-test.array_record*")
    content = bytearray(shard.read_bytes())
    for i in range(len(content) // 4, len(content) // 2):
        content[i] ^= 255
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"mnist in .* is damaged .*delete that folder") as caught:
        data.load("mnist", tiny / "tfds")
    assert "\n" not in str(caught.value)


def test_binarized_text_files_are_read(tmp_path):
    x = np.random.RandomState(0).randint(0, 2, (3, 784))
    path = tmp_path / "a.amat"
    np.savetxt(path, x, fmt="%d")
    from PIL import Image

    for row, example in data._amat_examples(path):
        image = np.asarray(Image.open(example["image"]))
        np.testing.assert_array_equal(image.reshape(-1), x[row])


@pytest.mark.parametrize("name", SIZES)
def test_real_sets_have_their_published_sizes(name, prepared):
    dataset = data.load(name, prepared)
    assert tuple(len(split["x"]) for split in dataset.splits.values()) == SIZES[name]
    assert dataset.shape == (28, 28, 1)
    assert dataset.train["x"].max() == dataset.peak
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
