"""Data: splits, binarisation, preparing from a download, the cache, and what is damaged."""

import gzip
import hashlib
import http.server
import math
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
import scipy.sparse

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


def test_nudged_digits_are_those_of_the_example(digits):
    """Each digit five times, against its own convolution with the example's kernels."""
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
    assert [len(split["x"]) for split in dataset.splits.values()] == [6469, 719, 1797]
    everything = np.concatenate([split["x"][..., 0] for split in dataset.splits.values()])
    assert sorted(map(bytes, everything)) == sorted(map(bytes, moved.astype(np.uint8)))
    assert dataset.train["x"].max() == dataset.peak == 16


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


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name != "mnist" else ()) for name in SIZES],
)
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


UCI_SIZES = {
    "uci_dna": (180, 1400, 600, 1186),
    "uci_mushrooms": (112, 2000, 500, 5624),
    "uci_nips": (500, 400, 100, 1240),
}


@pytest.mark.parametrize("name", UCI_SIZES)
def test_uci_sets_have_the_published_splits(name):
    folder = os.environ.get("GEN_DATA_DIR")
    if not folder or not Path(folder, f"{name}.npz").is_file():
        pytest.skip(f"GEN_DATA_DIR names no folder with {name}.npz")
    dataset = data.load(name)
    rows = [len(split["x"]) for split in (dataset.train, dataset.validation, dataset.test)]
    assert (*dataset.shape, *rows) == UCI_SIZES[name]
    assert set(np.unique(dataset.train["x"])) == {0, 1}
    assert dataset.peak == 1


SEQUENCES = {
    "jsb": ("JSB_Chorales.mat", (160, 88), (229, 76, 77), (13807, 4602, 4725)),
    "nottingham": ("Nottingham.mat", (1793, 88), (694, 173, 170), (176561, 45513, 44463)),
    "letters": ("tinyshakespeare.txt", (1000,), (954, 53, 53), (953622, 52979, 52980)),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_are_padded_and_have_their_lengths(name):
    file, shape, rows, steps = SEQUENCES[name]
    folder = os.environ.get("GEN_DATA_DIR")
    if not folder or not Path(folder, file).is_file():
        pytest.skip(f"GEN_DATA_DIR names no folder with {file}")
    dataset = data.load(name)
    splits = dataset.train, dataset.validation, dataset.test
    assert dataset.shape == shape
    assert tuple(len(split["x"]) for split in splits) == rows
    assert tuple(split["length"].sum() for split in splits) == steps
    for split in splits:
        behind = np.arange(shape[0])[None] >= split["length"][:, None]
        assert not split["x"][behind].any()
        assert split["x"].max() == dataset.peak


def test_piano_rolls_are_read_from_their_cells(tmp_path, monkeypatch):
    """A file of the test's own, in the form of the published ones."""
    rolls = [np.eye(88, dtype=np.uint8)[:length] for length in (3, 5, 2)]
    cells = {}
    for split, roll in zip(("train", "valid", "test"), rolls, strict=True):
        cells[f"{split}data"] = np.empty((1, 1), object)
        cells[f"{split}data"][0, 0] = roll
    path = tmp_path / "JSB_Chorales.mat"
    scipy.io.savemat(path, cells)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(data.MUSIC, "jsb", data.File(path.name, "http://127.0.0.1:9/", digest))
    monkeypatch.setenv("GEN_DATA_DIR", str(tmp_path))
    dataset = data.load("jsb")
    assert dataset.shape == (5, 88)
    np.testing.assert_array_equal(dataset.train["x"][0, :3], rolls[0])
    assert dataset.train["length"] == [3]
    assert dataset.test["x"].sum() == 2


def test_news_are_documents_of_100_words():
    folder = os.environ.get("GEN_DATA_DIR")
    if not folder or not Path(folder, "20news_w100.mat").is_file():
        pytest.skip("GEN_DATA_DIR names no folder with 20news_w100.mat")
    dataset = data.load("news")
    assert [len(split["x"]) for split in dataset.splits.values()] == [13138, 1578, 1526]
    assert [len(rows) for rows in fingerprints(dataset).values()] == [8213, 1027, 1027]
    assert len(set.union(*fingerprints(dataset).values())) == 10267
    assert (dataset.shape, dataset.peak, len(dataset.words)) == ((100,), 1, 100)
    counts = sum(np.bincount(split["label"]) for split in dataset.splits.values())
    np.testing.assert_array_equal(counts, [4605, 3519, 2657, 5461])
    assert sum(split["x"].sum() for split in dataset.splits.values()) == 65451
    for label, word in enumerate(("windows", "hockey", "nasa", "god")):  # of comp, rec, sci, talk
        labels = dataset.train["label"][dataset.train["x"][:, dataset.words.index(word)] == 1]
        assert np.bincount(labels).argmax() == label


def test_no_document_stands_in_two_splits(tmp_path, monkeypatch):
    """In a file of the test's own, in the form of the published one, in which most rows repeat."""
    rng = np.random.RandomState(0)
    x = rng.randint(0, 2, (100, 9)).astype(np.uint8)[rng.randint(0, 100, 400)]
    label = rng.randint(1, 5, 400)
    words = np.array([[f"word{d}" for d in range(9)]], object)
    path = tmp_path / "20news_w100.mat"
    documents = scipy.sparse.csc_matrix(x.T)
    scipy.io.savemat(path, {"documents": documents, "newsgroups": label, "wordlist": words})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(data, "NEWS", data.File(path.name, "http://127.0.0.1:9/", digest))
    monkeypatch.setenv("GEN_DATA_DIR", str(tmp_path))
    dataset = data.load("news")
    distinct = fingerprints(dataset)
    different = len({row.tobytes() for row in x})
    assert sum(map(len, distinct.values())) == len(set.union(*distinct.values())) == different
    assert len(distinct["test"]) == len(distinct["validation"]) == round(different / 10)
    rows = [
        (row.tobytes(), of)
        for split in dataset.splits.values()
        for row, of in zip(split["x"], split["label"], strict=True)
    ]
    assert sorted(rows) == sorted(zip([row.tobytes() for row in x], label - 1, strict=True))
    assert dataset.words == tuple(f"word{d}" for d in range(9))


def test_the_earthquakes_are_those_of_the_textbook():
    dataset = data.load("earthquakes")
    assert dataset.shape == (107, 1)
    counts = dataset.train["x"][0, :, 0]
    assert (counts[0], counts[-1], counts.max(), counts.sum()) == (13, 11, 41, 2072)


def test_the_density_of_the_eight_gaussians_integrates_to_one_and_has_its_entropy():
    middle = (jnp.arange(1000) + 0.5) / 1000
    x = jnp.stack(jnp.meshgrid(middle, middle), axis=-1)
    log_p = np.asarray(data.eight_gaussians_log_prob(x), np.float64)
    p = np.exp(log_p) / log_p.size
    np.testing.assert_allclose(p.sum(), 1, atol=1e-5)
    entropy = math.log(8) + math.log(2 * math.pi * math.e * 0.02**2)
    np.testing.assert_allclose(-(p * log_p).sum(), entropy, atol=1e-4)
    centre = data.eight_gaussians_log_prob(jnp.array([0.5, 0.85]))
    np.testing.assert_allclose(centre, -math.log(8 * 2 * math.pi * 0.02**2), rtol=1e-5)


def test_the_eight_gaussians_are_drawn_from_their_density():
    """Moments within 4 σ; and the same points at every load, on every machine."""
    dataset = data.load("eight_gaussians")
    expected = "d7c904f9851a28996839b1dbc5c14a2c8d2939d18e96bdaff18a019821e08320"
    assert dataset.sha256 == data.load("eight_gaussians").sha256 == expected
    assert [len(split["x"]) for split in dataset.splits.values()] == [20_000, 2_000, 5_000]
    assert (dataset.shape, dataset.train["x"].dtype, dataset.peak) == ((2,), np.uint16, 65_535)
    assert dataset.log_prob is data.eight_gaussians_log_prob
    for split in dataset.splits.values():
        n = len(split["x"])
        batch = {name: jnp.asarray(values) for name, values in split.items()}
        x = data.decode(batch, jax.random.key(0), peak=dataset.peak, binarize="none")["x"]
        np.testing.assert_array_equal(np.round(x * 65_535.0), split["x"])
        counts = np.bincount(split["label"])
        np.testing.assert_allclose(counts / n, 1 / 8, atol=4 * math.sqrt(7 / 64 / n))
        z = (np.asarray(x) - data.CENTRES[split["label"]]) / data.DEVIATION
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=4 / math.sqrt(n))
        np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=4 * math.sqrt(2 / n))
        log_p = data.eight_gaussians_log_prob(x)
        entropy = math.log(8) + math.log(2 * math.pi * math.e * 0.02**2)
        assert abs(log_p.mean() + entropy) < 4 * log_p.std() / math.sqrt(n)


def test_a_local_file_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("GEN_DATA_DIR", str(tmp_path))
    (tmp_path / "uci_dna.npz").write_bytes(b"something else")
    with pytest.raises(UserError, match="is damaged"):
        data.load("uci_dna")


def test_a_file_that_cannot_be_downloaded_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("GEN_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="could not be downloaded") as error:
        data.fetch("absent.bin", "http://127.0.0.1:9/absent.bin", "0" * 64)
    assert "\n" not in str(error.value)


def test_a_download_is_cached_and_checked(tmp_path, monkeypatch):
    """From a server of the test's own; the second time there is none."""
    content = b"some bytes"
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file.bin").write_bytes(content)
    monkeypatch.delenv("GEN_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    handler = partial(QuietHandler, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/file.bin"
    with pytest.raises(UserError, match="could not be downloaded"):
        data.fetch("other.bin", url, "0" * 64)
    sha256 = hashlib.sha256(content).hexdigest()
    assert data.fetch("file.bin", url, sha256).read_bytes() == content
    server.shutdown()
    server.server_close()
    assert data.fetch("file.bin", url, sha256).read_bytes() == content


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
