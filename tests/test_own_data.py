"""Own data: kinds, splits, standardisation, files of every kind, wrong files, and whole runs."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from PIL import Image

import gen
from experiments import fitting, own
from experiments.__main__ import main
from experiments.registry import EXPERIMENTS
from gen import data, estimate
from gen.core import UserError, facts
from gen.data import Format, Reading, containers, folders, from_arrays, tables
from gen.data import own as own_files

RNG = np.random.default_rng(0)


def sizes(dataset):
    return [len(split["x"]) for split in dataset.splits.values()]


def kind_of(dataset):
    """Return the kind of a data set as a word, and its number of levels."""
    format = dataset.format
    if format.counts:
        return "counts", 0
    if format.symbols:
        return "symbols", format.levels
    return ("levels" if format.levels else "continuous"), format.levels


def decoded(dataset, split="train"):
    rows = {name: jnp.asarray(values) for name, values in dataset.splits[split].items()}
    return np.asarray(dataset.format.decode(rows, jax.random.key(0))["x"])


# Splits


def test_equal_rows_never_stand_in_two_splits_and_the_order_does_not_matter():
    x = RNG.integers(0, 2, (400, 8)).astype(np.uint8)  # at most 256 distinct rows
    dataset = from_arrays(x)
    rows = [{row.tobytes() for row in split["x"]} for split in dataset.splits.values()]
    assert len(set.union(*rows)) == sum(map(len, rows)) == len({row.tobytes() for row in x})
    assert len(rows[1]) == len(rows[2]) == round(sum(map(len, rows)) / 10)
    assert sum(sizes(dataset)) == 400
    moved = from_arrays(x[RNG.permutation(400)])
    assert rows == [{row.tobytes() for row in split["x"]} for split in moved.splits.values()]


def test_equal_sequences_of_other_padding_stand_in_one_split():
    x = np.zeros((40, 6))
    x[:, 0] = np.repeat(np.arange(20), 2) + 0.5
    x[1::2, 4] = 7.0  # behind the end
    dataset = from_arrays(x, length=np.full(40, 3))
    for split in dataset.splits.values():
        assert len(split["x"]) % 2 == 0
        assert not split["x"][:, 3:].any()


def test_minus_zero_and_zero_stand_in_one_split():
    x = np.repeat(RNG.normal(size=(30, 2)), 2, axis=0)
    x[:, 1] = np.tile([0.0, -0.0], 30)
    for split in from_arrays(x, kind="continuous").splits.values():
        assert len(split["x"]) % 2 == 0


def test_own_splits_are_kept_and_a_lacking_one_is_held_out_of_training():
    x = {"train": RNG.normal(size=(50, 3)), "test": RNG.normal(size=(20, 3))}
    label = {"train": np.arange(50) % 2, "test": np.zeros(20)}
    dataset = from_arrays(x, label)
    assert sizes(dataset) == [45, 5, 20]
    np.testing.assert_array_equal(dataset.test["x"], x["test"].astype(np.float32))
    assert dataset.classes == 2


def test_a_series_is_cut_into_contiguous_parts():
    series = np.sin(np.arange(1000.0))
    dataset = from_arrays(series, sequence_length=300)
    joined = [
        np.concatenate([row[:n, 0] for row, n in zip(split["x"], split["length"], strict=True)])
        for split in dataset.splits.values()
    ]
    assert [len(part) for part in joined] == [800, 100, 100]
    np.testing.assert_array_equal(np.concatenate(joined), series.astype(np.float32))
    assert dataset.train["length"].tolist() == [300, 300, 200]
    table = from_arrays(RNG.normal(size=(100, 3)), series=True, sequence_length=40)
    assert (table.shape, sizes(table)) == ((40, 3), [2, 1, 1])


# Kinds


@pytest.mark.parametrize(
    ("x", "kind", "shape"),
    [
        (RNG.integers(0, 2, (40, 5)), ("levels", 2), (5,)),
        (RNG.integers(0, 2, (40, 5)).astype(bool), ("levels", 2), (5,)),
        (255 * RNG.integers(0, 2, (40, 3, 3), np.uint8), ("levels", 2), (3, 3, 1)),
        (RNG.integers(0, 256, (40, 3, 3), np.uint8), ("levels", 256), (3, 3, 1)),
        (RNG.integers(0, 17, (40, 8, 8)) + 0.0, ("levels", 17), (8, 8, 1)),
        (RNG.integers(0, 256, (40, 3, 3, 3)) / 255, ("levels", 256), (3, 3, 3)),
        (RNG.integers(0, 5, (40, 4, 4)) / 4, ("levels", 5), (4, 4, 1)),
        (RNG.integers(0, 256, (40, 784)), ("levels", 256), (784,)),
        (RNG.integers(0, 2000, (40, 30)), ("counts", 0), (30,)),
        (RNG.integers(0, 90, (40, 3)), ("continuous", 0), (3,)),
        (RNG.normal(size=(40, 3)), ("continuous", 0), (3,)),
        (RNG.random((40, 3, 3)), ("continuous", 0), (3, 3, 1)),
        (RNG.integers(0, 60_000, (40, 3, 3), np.uint16), ("continuous", 0), (3, 3, 1)),
        (np.arange(400) % 5, ("levels", 5), (200,)),
        (np.arange(400) % 5 + 3, ("counts", 0), (200, 1)),
        ("abca" * 100, ("symbols", 3), (200,)),
        (["abc", "ca", "a", "bb"] * 3, ("symbols", 3), (3,)),
        ([[1.5, 2.0], [3.0], [4.0, 5.0, 6.0]], ("continuous", 0), (3, 1)),
    ],
)
def test_the_kind_is_found(x, kind, shape):
    dataset = from_arrays(x)
    assert (kind_of(dataset), dataset.shape) == (kind, shape)
    values = decoded(dataset)
    if dataset.format.levels or len(dataset.shape) == 3:
        assert values.min() >= 0
        assert values.max() <= 1


def test_a_kind_can_be_given():
    counts = RNG.integers(0, 9, (50, 4))
    assert kind_of(from_arrays(counts, kind="counts")) == ("counts", 0)
    assert kind_of(from_arrays(counts, kind="levels", levels=12)) == ("levels", 12)
    assert kind_of(from_arrays(counts > 3, kind="continuous")) == ("continuous", 0)
    kind: Any
    for kind, named in (("binary", "0 and 1"), ("symbols", "integers"), ("counts", "no counts")):
        with pytest.raises(UserError, match=named):
            from_arrays(counts - 4.5, kind=kind)
    with pytest.raises(UserError, match="no levels: needed are integers 0 … 3"):
        from_arrays(counts, kind="levels", levels=4)


def test_a_number_of_levels_alone_makes_levels_or_symbols():
    grey = 255 * RNG.integers(0, 2, (40, 3, 3), np.uint8)
    assert kind_of(from_arrays(grey, levels=256)) == ("levels", 256)
    assert kind_of(from_arrays(grey, levels=2)) == ("levels", 2)
    assert kind_of(from_arrays(RNG.integers(0, 5, (40, 3)) / 4, levels=5)) == ("levels", 5)
    with pytest.raises(UserError, match="5 levels and the kind counts: leave one of them out"):
        from_arrays(grey, levels=5, kind="counts")
    steps = from_arrays(np.arange(400) % 5 + 3, levels=9)
    assert (kind_of(steps), steps.shape) == (("levels", 9), (200,))


def test_black_and_white_bytes_are_stored_as_they_are():
    x = 255 * RNG.integers(0, 2, (40, 3, 3), np.uint8)
    dataset = from_arrays(x)
    assert (dataset.format, dataset.train["x"].dtype) == (Format(255, levels=2), np.uint8)
    assert set(np.unique(dataset.train["x"])) == {0, 255}
    assert set(np.unique(decoded(dataset))) == {0, 1}


def test_a_model_takes_and_draws_black_and_white_bytes():
    dataset = from_arrays(255 * RNG.integers(0, 2, (40, 6), np.uint8))
    model = replace(EXPERIMENTS["bernoulli_uci_nips"].model, shape=(6,))
    run = gen.Trained("bytes", model, jax.jit(model.init)(jax.random.key(0)), 0, {}, dataset.format)
    x = dataset.test["x"]
    np.testing.assert_array_equal(run.log_prob(x), run.log_prob(x / 255.0))
    assert set(np.unique(run.sample(9))) == {0, 255}


def test_images_of_16_bits_are_stored_with_their_scale():
    x = RNG.integers(0, 60_000, (40, 3, 3), np.uint16)
    dataset = from_arrays(x)
    assert (dataset.format, dataset.train["x"].dtype) == (Format(65_535, levels=0), np.uint16)
    np.testing.assert_allclose(decoded(dataset), dataset.train["x"] / 65_535, rtol=1e-6)
    sequences = from_arrays(x, length=np.full(40, 3), kind="continuous")
    assert decoded(sequences).max() > 1_000


def test_sequences_of_one_length_are_images_unless_they_are_called_a_series(tmp_path):
    x = RNG.normal(size=(40, 5, 3))
    images = from_arrays(x)
    assert images.shape == (5, 3, 1)
    assert decoded(images).max() <= 1
    assert from_arrays(RNG.integers(0, 4_096, (40, 5, 3), np.int32)).shape == (5, 3, 1)
    np.save(tmp_path / "walks.npy", x)
    sequences = data.load(tmp_path / "walks.npy", reading=Reading(series=True))
    assert sequences.shape == (5, 3)
    assert set(sequences.train["length"]) == {5}
    with pytest.raises(UserError, match=r"has the shape \(2, 2, 2, 2\)"):
        from_arrays(np.zeros((2, 2, 2, 2)), series=True)


def test_lengths_that_do_not_apply_are_refused():
    x, length = np.zeros((6, 4)), np.full(6, 2)
    with pytest.raises(UserError, match="lengths in one array: give the lengths by split"):
        from_arrays({"train": x}, length=length)
    with pytest.raises(UserError, match="lists of sequences and has lengths"):
        from_arrays({"train": [[1], [1, 2]]}, length={"train": [1, 2]})
    with pytest.raises(UserError, match="one series and has lengths"):
        from_arrays(np.arange(9), length=np.full(9, 1))


def test_texts_are_spelled_by_the_symbols():
    dataset = from_arrays("to be or not to be " * 50, sequence_length=19)
    letters = [dataset.format.symbols[i] for i in dataset.train["x"][0]]
    assert "".join(letters) == "to be or not to be "


def test_labels_of_any_kind_become_classes():
    x = RNG.normal(size=(6, 2))
    named = from_arrays(x, ["b", "a", "c", "a", "b", "c"])
    assert named.format.labels == ("a", "b", "c")
    from_one = from_arrays(x, [1, 2, 3, 1, 2, 3])
    assert (from_one.classes, from_one.format.labels) == (3, ("1", "2", "3"))
    assert from_arrays(x, [0, 1, 2, 0, 1, 2]).format.labels == ()
    with pytest.raises(UserError, match="5 labels and 6 rows"):
        from_arrays(x, [0, 1, 2, 0, 1])
    missing: Any
    for missing in ([0, np.nan, 2, 0, 1, 1], ["a", None, *"bcde"], ["a", np.nan, *"bcde"]):
        with pytest.raises(UserError, match="no label in row 2"):
            from_arrays(x, missing)


def test_names_of_classes_belong_to_their_numbers():
    x, names = RNG.normal(size=(6, 2)), ("a", "b", "c")
    dataset = from_arrays(x, [0, 2, 0, 2, 0, 2], labels=names)
    assert (set(dataset.train["label"]) | set(dataset.test["label"]), dataset.classes) == (
        {0, 2},
        3,
    )
    assert dataset.format.labels == names
    label: Any
    for label, named in (([0, 1, 3, 0, 1, 2], "label 3 "), ([*"abcabc"], "label 'a' ")):
        with pytest.raises(UserError, match=f"{named}and 3 names of classes: give integers 0 … 2"):
            from_arrays(x, label, labels=names)


def test_columns_are_named_in_data_frames_alone(tmp_path):
    x = RNG.normal(size=(6, 2))
    with pytest.raises(UserError, match="no data frame and has no column 'species'"):
        from_arrays(x, "species")
    with pytest.raises(UserError, match="leave columns out"):
        from_arrays(x, columns=["a"])
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(UserError, match="is no table: leave --label-column and --columns out"):
        data.load(tmp_path / "a.npy", reading=Reading(label_column="species"))


# Standardisation


def test_columns_are_standardised_by_the_training_split_and_restored():
    x = RNG.normal(size=(300, 3)) * [1, 50, 1e-3] + [0, 1000, 5]
    x = np.concatenate([x, np.full((300, 1), 7.0), RNG.integers(0, 2, (300, 1))], axis=1)
    x[::20, 1] = np.nan
    dataset = from_arrays(x)
    y = decoded(dataset)
    np.testing.assert_allclose(np.nanmean(y[:, :3], axis=0), 0, atol=2e-3)
    np.testing.assert_allclose(np.nanstd(y[:, :3], axis=0), 1, rtol=1e-2)
    assert not y[:, 3].any()  # a constant column
    assert set(np.unique(y[:, 4])) == {0, 1}  # an indicator
    np.testing.assert_allclose(dataset.format.restore(y), dataset.train["x"], rtol=1e-5)


def test_images_outside_of_the_unit_interval_are_scaled_to_it():
    x = RNG.uniform(-1, 1, (50, 4, 4, 3))
    dataset = from_arrays(x)
    y = decoded(dataset)
    assert y.min() >= 0
    assert y.max() <= 1
    np.testing.assert_allclose(dataset.format.restore(y), dataset.train["x"], atol=1e-6)


def test_missing_values_are_kept_dropped_or_filled():
    x = RNG.normal(size=(100, 2)) + 5
    x[::10, 0] = np.nan
    kept, dropped, filled = (from_arrays(x, missing=m) for m in ("keep", "drop", "mean"))
    assert sum(sizes(kept)) == 100
    assert np.isnan(decoded(kept)).any()
    assert sum(sizes(dropped)) == 90
    missing = np.isnan(kept.train["x"])
    np.testing.assert_allclose(decoded(filled)[missing], 0, atol=1e-6)
    for other in (RNG.integers(0, 2, (50, 3)), RNG.random((50, 3, 3)), np.arange(50.0)):
        with pytest.raises(UserError, match=r"no continuous columns.*--missing drop"):
            from_arrays(other, missing="mean")


def test_a_column_that_32_bits_do_not_resolve_is_refused():
    with pytest.raises(UserError, match="subtract a constant"):
        from_arrays(1.6e7 + 30 * RNG.normal(size=(50, 2)))


def test_a_density_in_own_units_equals_a_direct_computation():
    """−log p(x) of an exact normal model of the standardised columns, by its two formulas."""
    x = RNG.normal(size=(400, 2)) * [3.0, 0.01] + [100.0, 1.0]
    dataset = from_arrays(x)
    y = decoded(dataset, "test").astype(np.float64)
    standard = 0.5 * (y**2 + np.log(2 * np.pi)).sum(axis=1)
    results = own.in_own_units({"nll": estimate.mean(standard, "exact", density=True)}, dataset)
    center, scale = np.array(dataset.format.center), np.array(dataset.format.scale)
    stored = dataset.test["x"].astype(np.float64)
    normal = 0.5 * ((stored - center) / scale) ** 2 + np.log(scale * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(results["nll"].value, normal.sum(axis=1).mean(), rtol=1e-5)
    assert results["nll"].stderr == estimate.mean(standard, "exact").stderr
    np.testing.assert_allclose(results["nll"].settings["log_scale"], np.log(scale).sum())


def test_squared_errors_say_their_units():
    rows = from_arrays(RNG.normal(size=(50, 2)) * [3, 9])
    images = from_arrays(RNG.uniform(-4, 4, (50, 2, 2)).astype(np.float32)[..., None])
    mse = {"mse": estimate.mean(np.array([1.0, 1.0, 4.0]), "exact")}
    assert own.in_own_units(mse, rows)["mse"].settings == {"units": "standardised"}
    rbm = {
        "nll": estimate.mean(np.ones(3), "exact", density=True),
        "reconstruction": estimate.mean(np.ones(3), "no likelihood"),
    }
    assert own.in_own_units(rbm, rows)["reconstruction"].settings == {"units": "standardised"}
    vae = {**rbm, "reconstruction": estimate.mean(np.ones(3), "Monte Carlo")}
    moved = own.in_own_units(vae, rows)
    assert moved["reconstruction"].value == moved["nll"].value == 1 + data.log_scale(rows)
    scaled = own.in_own_units(mse, images)["mse"]
    np.testing.assert_allclose(scaled.value, 2 * images.format.scale[0] ** 2)


# Files


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_npz_files_hold_arrays_or_splits(tmp_path):
    x, y = RNG.integers(0, 2, (50, 4)), RNG.integers(0, 3, 50)
    np.savez(tmp_path / "a.npz", X=x, y=y)
    dataset = data.load(tmp_path / "a.npz")
    assert (sum(sizes(dataset)), dataset.classes, dataset.name) == (50, 3, "a")
    np.savez(
        tmp_path / "b.npz", x_train=x, y_train=y, x_valid=x[:5], y_valid=y[:5], test_x=x[:7],
        test_y=y[:7]
    )  # fmt: skip
    assert sizes(data.load(tmp_path / "b.npz")) == [50, 5, 7]
    walks = np.zeros((20, 9, 2))
    walks[:, :4] = RNG.normal(size=(20, 4, 2))
    np.savez(tmp_path / "c.npz", x=walks, length=np.full(20, 4))
    assert data.load(tmp_path / "c.npz").train["length"].tolist() == [4] * 16
    np.save(tmp_path / "d.npy", RNG.normal(size=(30, 2)))
    assert data.load(tmp_path / "d.npy").shape == (2,)


def test_matlab_files_hold_arrays_sparse_matrices_and_cells(tmp_path):
    cells = np.empty((1, 12), object)
    for i in range(12):
        cells[0, i] = RNG.normal(size=(i + 2, 3))
    scipy.io.savemat(tmp_path / "a.mat", {"x": cells}, do_compression=True)
    dataset = data.load(tmp_path / "a.mat")
    assert dataset.shape == (13, 3)
    assert sorted(np.concatenate([s["length"] for s in dataset.splits.values()])) == [*range(2, 14)]
    x = scipy.sparse.csc_matrix(RNG.integers(0, 2, (30, 6)))
    scipy.io.savemat(tmp_path / "b.mat", {"data": x, "labels": np.arange(30)[:, None] % 2 + 1})
    dataset = data.load(tmp_path / "b.mat")
    assert (kind_of(dataset), dataset.format.labels) == (("levels", 2), ("1", "2"))


TABLE = "height,weight,sex,group\n1.5,70,f,a\n1.8,,m,b\n1.7,65.5,f,a\n1.6,80,m,b\n1.9,90.25,m,a\n"


def test_tables_have_headers_missing_cells_categories_and_labels(tmp_path):
    path = write(tmp_path / "people.csv", TABLE)
    dataset = data.load(path, reading=Reading(label_column="group"))
    assert dataset.format.words == ("height", "weight", "sex=f", "sex=m")
    assert dataset.format.labels == ("a", "b")
    assert sum(np.isnan(split["x"]).sum() for split in dataset.splits.values()) == 1
    assert dataset.format.scale[2:] == (1.0, 1.0)
    chosen = data.load(path, reading=Reading(columns=("weight", "height")))
    assert (chosen.format.words, chosen.classes) == (("weight", "height"), 0)
    tabs = write(tmp_path / "people.tsv", TABLE.replace(",", "\t"))
    np.testing.assert_array_equal(
        data.load(tabs, reading=Reading(label_column="group")).train["x"], dataset.train["x"]
    )
    bare = write(tmp_path / "bare.csv", "1.5;2\n2.5;3\n3.5;4\n4.5;5\n")
    assert data.load(bare, reading=Reading(label_column="2")).format.words == ("1",)


def test_texts_of_a_column_are_kept_where_a_later_cell_is_no_number(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LINES_AT_ONCE", 3)
    cells = ["1234500", "1234501", "007", "7", "x", "y", "z", "7"]
    path = write(tmp_path / "a.csv", "\n".join(["code,size", *(f"{c},1.5" for c in cells)]))
    table = tables.read_csv(path)
    assert table.words == (*(f"code={cell}" for cell in sorted(set(cells))), "size")
    assert table.x[:, -1].tolist() == [1.5] * 8


def test_long_cells_of_columns_that_are_not_taken_are_skipped(tmp_path):
    path = write(tmp_path / "a.csv", f"a,review\n1.5,{'x' * 2_000}\n2.5,y\n3.5,z\n")
    assert data.load(path, reading=Reading(columns=("a",))).format.words == ("a",)


def test_labels_can_be_called_none(tmp_path):
    path = write(tmp_path / "a.csv", "a,kind\n" + "1,none\n2,NA\n3,b\n" * 2)
    dataset = data.load(path, reading=Reading(label_column="kind"))
    assert dataset.format.labels == ("NA", "b", "none")


def test_tables_of_categories_are_binary(tmp_path):
    rows = ["cap,odour"] + [f"{c},{o}" for c in "xyz" for o in "abab?"] * 2
    dataset = data.load(write(tmp_path / "mushrooms.csv", "\n".join(rows)))
    assert kind_of(dataset) == ("levels", 2)
    assert dataset.format.words == ("cap=x", "cap=y", "cap=z", "odour=?", "odour=a", "odour=b")
    for split in dataset.splits.values():
        assert (split["x"].sum(axis=1) == 2).all()


class Frame:
    """The part of a data frame of pandas that is used."""

    def __init__(self, **columns):
        self.parts = columns
        self.columns = [*columns]

    def __getitem__(self, name):
        return Frame(**{name: self.parts[name]})

    def to_numpy(self):
        return np.array(next(iter(self.parts.values())))


def test_data_frames_are_tables():
    frame = Frame(
        size=np.arange(10.0) + 0.5,
        colour=np.array(["red", "blue", None, "red", "red"] * 2, object),
        kind=np.array(["a", "b"] * 5, object),
    )
    dataset = from_arrays(frame, "kind")
    assert dataset.format.words == ("size", "colour=?", "colour=blue", "colour=red")
    assert (dataset.classes, dataset.format.labels) == (2, ("a", "b"))
    frame.columns = ["size", "size"]
    with pytest.raises(UserError, match="two columns 'size': rename one"):
        from_arrays(frame)


def test_texts_are_letters_or_words(tmp_path):
    path = write(tmp_path / "story.txt", "the cat and the dog\nand the bird\n" * 40)
    letters = data.load(path, reading=Reading(sequence_length=30))
    assert letters.shape == (30,)
    assert letters.format.symbols == "".join(sorted(set(path.read_text())))
    words = data.load(path, reading=Reading(split_words=True, vocabulary=3, sequence_length=8))
    assert words.format.symbols[:2] == ("and", "the")
    spelled = [words.format.symbols[i] for i in words.train["x"][0]]
    unknown = words.format.symbols[-1]
    assert spelled == ["the", unknown, "and", "the", unknown, "and", "the", unknown]


def save_images(folder: Path, classes: dict[str, int], pixels: Any) -> Path:
    """Write images into a folder, for each class a number of them."""
    for name, number in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            Image.fromarray(pixels()).save(folder / name / f"{i}.png")
    return folder


def colours():
    return RNG.integers(0, 256, (6, 5, 3), np.uint8)


def test_folders_hold_classes_of_images(tmp_path):
    folder = save_images(tmp_path / "pets", {"cats": 12, "dogs": 8}, colours)
    dataset = data.load(folder)
    assert (dataset.shape, sum(sizes(dataset))) == ((6, 5, 3), 20)
    assert dataset.format.labels == ("cats", "dogs")
    assert (dataset.format.levels, dataset.train["x"].dtype) == (256, np.uint8)
    grey = data.load(folder, reading=Reading(resize=4, grey=True))
    assert grey.shape == (4, 4, 1)


def test_folders_can_hold_splits(tmp_path):
    for split, number in (("train", 6), ("val", 3), ("test", 4)):
        save_images(tmp_path / "a" / split, {"x": number, "y": number}, colours)
    dataset = data.load(tmp_path / "a")
    assert sizes(dataset) == [12, 6, 8]
    assert dataset.format.labels == ("x", "y")


def test_grey_palettes_transparency_and_16_bits(tmp_path):
    grey = RNG.integers(0, 256, (4, 4), np.uint8)
    three = np.repeat(grey[..., None], 3, axis=2)
    alpha = np.concatenate([three, np.full((4, 4, 1), 255, np.uint8)], axis=2)
    alpha[0, 0, 3] = 0
    folder = tmp_path / "a"
    folder.mkdir()
    Image.fromarray(grey).save(folder / "0.png")
    Image.fromarray(three).save(folder / "1.png")
    Image.fromarray(alpha).save(folder / "2.png")
    Image.fromarray(grey).convert("P").save(folder / "3.png")
    x = folders.read_images(folder).x
    assert x.shape == (4, 4, 4, 1)
    np.testing.assert_array_equal(x[[0, 1, 3], ..., 0], np.stack([grey] * 3))
    assert x[2, 0, 0] == 255  # white behind a transparent pixel
    deep = RNG.integers(0, 65_536, (4, 4)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "4.png")
    x = folders.read_images(folder).x
    assert x.dtype == np.uint16
    np.testing.assert_array_equal(x[4, ..., 0], deep)
    np.testing.assert_array_equal(x[0, ..., 0], 257 * grey.astype(np.uint16))


def test_a_folder_is_cached_until_a_file_changes(tmp_path, monkeypatch):
    folder = save_images(tmp_path / "b", {"x": 5}, colours)
    before = data.load(folder)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "read_images", None)
        again = data.load(folder)
    assert (again.sha256, again.format) == (before.sha256, before.format)
    with monkeypatch.context() as patch:
        patch.setattr(own_files, "READING_VERSION", 0)  # other rules of reading
        patch.setattr(folders, "read_images", None)
        with pytest.raises(TypeError):
            data.load(folder)
    Image.fromarray(colours()).save(folder / "x" / "new.png")
    assert sum(sizes(data.load(folder))) == 6


def test_any_prepared_set_is_read_without_tensorflow(tmp_path):
    from gen.data.images import import_tfds

    tfds = import_tfds()

    class Petals(tfds.core.GeneratorBasedBuilder):
        """Flowers."""

        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "lengths": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                        "colour": tfds.features.ClassLabel(names=["red", "blue"]),
                        "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(30), "test": self._generate_examples(10)}

        def _generate_examples(self, n):
            for i in range(n):
                lengths = np.array([i, 2 * i + 0.5], np.float32)
                label = -1 if type(self) is Buds and n == 10 else i % 3
                yield i, {"lengths": lengths, "colour": i % 2, "label": label}

    class Buds(Petals):
        """Flowers, whose test split has no labels."""

        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path

    Petals(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    dataset = data.load("petals", tmp_path)
    assert sizes(dataset) == [27, 3, 10]
    assert dataset.format.words == ("colour=blue", "colour=red", "lengths_0", "lengths_1")
    assert dataset.format.labels == ("a", "b", "c")
    Buds(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    buds = data.load("buds", tmp_path)
    assert (buds.classes, buds.format.labels, sizes(buds)) == (0, (), [27, 3, 10])
    assert data.load("petals:1.0.0", tmp_path).sha256 == dataset.sha256
    with pytest.raises(UserError, match=r"unknown data set .petals:2.0.0."):
        data.load("petals:2.0.0", tmp_path)
    with pytest.raises(UserError, match=r"unknown data set .petal.: .*petals"):
        data.load("petal", tmp_path)
    features = tmp_path / "petals" / "1.0.0" / "features.json"
    features.write_text(features.read_text().replace("tensor_feature.Tensor", "evil.Tensor"))
    with pytest.raises(UserError, match=r"names the class .*evil\.Tensor"):
        data.load("petals", tmp_path)


# Wrong files


def no_images(folder):
    (folder / "a").mkdir()
    return folder / "a"


def two_sizes(folder):
    Image.new("L", (4, 4)).save(folder / "a.png")
    Image.new("L", (5, 4)).save(folder / "b.png")
    return folder


def truncated_image(folder):
    Image.fromarray(colours()).save(folder / "a.png")
    content = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(content[: len(content) // 2])
    return folder


def huge_image(folder):
    Image.new("1", (10_000, 10_000)).save(folder / "a.png")
    return folder


def pickles(folder):
    np.savez(folder / "a.npz", x=np.array([[1], [2, 3]], object))
    return folder / "a.npz"


def bomb(folder):
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(5_000))
    return folder / "a.npz"


def false_header(folder):
    np.save(folder / "a.npy", np.zeros(5))
    content = (folder / "a.npy").read_bytes().replace(b"(5,), }   ", b"(50000,),}")
    (folder / "a.npy").write_bytes(content)
    return folder / "a.npy"


def truncated_array(folder):
    np.save(folder / "a.npy", np.zeros(5))
    (folder / "a.npy").write_bytes((folder / "a.npy").read_bytes()[:-9])
    return folder / "a.npy"


def mat_bomb(folder):
    scipy.io.savemat(folder / "a.mat", {"x": np.zeros((40, 50))}, do_compression=True)
    return folder / "a.mat"


def mat_without_arrays(folder):
    scipy.io.savemat(folder / "a.mat", {"x": "a text"})
    return folder / "a.mat"


def no_text(folder):
    (folder / "a.txt").write_bytes(b"abc \xff\xfe\x00 def")
    return folder / "a.txt"


def table(text):
    return lambda folder: write(folder / "a.csv", text)


WRONG = {
    "absent": (lambda folder: folder / "absent.npz", "does not exist"),
    "absent without a suffix": (lambda folder: folder / "absent", "does not exist"),
    "no images": (no_images, "has no images"),
    "two sizes": (two_sizes, r"5 × 4 pixels and a.png 4 × 4: .*--resize"),
    "truncated image": (truncated_image, "is no image, or damaged"),
    "huge image": (huge_image, "more than 50,000,000"),
    "pickles": (pickles, "never unpickled"),
    "bomb": (bomb, "unpacks to 5,000 bytes, more than 4,000"),
    "false header": (false_header, "is truncated: it has"),
    "truncated array": (truncated_array, "is truncated: it has 31 of 40 bytes"),
    "mat bomb": (mat_bomb, "unpacks to more than 4,000 bytes"),
    "mat without arrays": (mat_without_arrays, "no arrays of numbers"),
    "ragged rows": (table("a,b\n1,2\n3\n"), "line 3, has 1 cells"),
    "text among numbers": (
        table("a\n" + "1\n" * 20 + "x\n" + "2\n" * 20),
        r"line 22, column a: 'x' is no number",
    ),
    "text behind empty lines and breaks of lines": (
        table('a,b\n\n1,"u\nv"\n' + "1,u\n" * 20 + "x,u\n"),
        r"line 25, column a: 'x' is no number",
    ),
    "long cell": (table("a\n1\n" + "x" * 2_000), "line 3, column a, has more than 1,000 "),
    "too many categories": (
        table("name\n" + "".join(f"n{i}\n" for i in range(60))),
        "60 different texts",
    ),
    "no rows": (table(""), "has no rows"),
    "few rows": (table("a,b\n1,2\n3,4\n"), "2 distinct rows, too few for 3 splits"),
    "unknown ending": (lambda folder: write(folder / "a.xlsx", "x"), "no known kind"),
    "no text": (no_text, "no text in UTF-8"),
    "empty text": (lambda folder: write(folder / "a.txt", "\n"), "is empty"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_files_are_one_clear_line(fault, tmp_path, capsys, monkeypatch):
    make, named = WRONG[fault]
    if "bomb" in fault:
        monkeypatch.setattr(containers, "LARGEST", 4_000)
    path = make(tmp_path)
    assert main(["data", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}") or str(tmp_path) in error
    assert error.count("\n") == 1
    with pytest.raises(UserError, match=named):
        data.load(path)


def test_labels_that_lack_are_named(tmp_path):
    path = write(tmp_path / "a.csv", "a,kind\n1,x\n2,\n3,y\n")
    with pytest.raises(UserError, match="line 3, has no label in column kind"):
        data.load(path, reading=Reading(label_column="kind"))
    with pytest.raises(UserError, match="no column 'sort': its columns are a, kind"):
        data.load(path, reading=Reading(label_column="sort"))
    np.savez(tmp_path / "b.npz", x=np.zeros((5, 2)), label=np.zeros(4))
    with pytest.raises(UserError, match="4 labels and 5 rows"):
        data.load(tmp_path / "b.npz")


# Experiments on own data


ROWS = from_arrays(RNG.normal(size=(200, 3)) * [1, 5, 9])
MIXED = from_arrays(
    np.concatenate([RNG.normal(size=(200, 2)), RNG.integers(0, 2, (200, 1))], axis=1),
    words=("a", "b", "c"),
)
MISSING = from_arrays(np.where(RNG.random((200, 3)) < 0.1, np.nan, RNG.normal(size=(200, 3))))
GREY = from_arrays(RNG.integers(0, 256, (200, 8, 8), np.uint8), np.arange(200) % 3)
LETTERS = from_arrays("abracadabra " * 300)


def on(name, dataset, **changes):
    experiment = replace(EXPERIMENTS[name], data="own.npz", **changes)
    return fitting.fit(name, experiment, dataset)


@pytest.mark.parametrize(
    ("name", "dataset", "named"),
    [
        ("vae_digits", ROWS, r"--model\.likelihood gaussian"),
        ("diffusion_toy", MIXED, r"columns of few values \(c\).*--columns 'a' 'b'"),
        ("ae_digits", MISSING, "missing values, .*--missing drop or --missing mean"),
        ("hmm_regimes", ROWS, "give --series"),
        ("nade_digits", ROWS, "see what fits: python -m experiments data own.npz"),
        ("vae_digits", LETTERS, "VAE does not take"),
        ("rbm_digits_nudged", ROWS, r"fits with --model\.units gaussian --no-probe"),
        ("vae_mnist", from_arrays(RNG.integers(0, 2, (50, 9))), "fits with --batch-size 40"),
        ("pixelcnn_digits", from_arrays(RNG.integers(0, 2, (200, 9))), "shape"),
    ],
)
def test_misfits_are_refused_in_one_line_that_says_what_fits(name, dataset, named):
    with pytest.raises(UserError, match=named) as caught:
        on(name, dataset)
    assert "\n" not in str(caught.value)


def test_levels_and_classes_are_the_datas():
    def model_on(name, dataset, **changes):
        return replace(EXPERIMENTS[name], data="own.npz", **changes).on(dataset).model

    assert facts(model_on("nade_digits", GREY, binarize="none")).levels == 256
    assert facts(model_on("nade_digits", GREY)).levels == 2  # binarised
    assert facts(model_on("hmm_letters_2", LETTERS)).levels == len("abrcd ")
    assert facts(model_on("diffusion_toy", ROWS)).levels == 0
    model = replace(EXPERIMENTS["diffusion_digits"].model, classes=10)
    assert facts(model_on("diffusion_digits", GREY, model=model)).classes == 3
    unlabelled = from_arrays(GREY.train["x"])
    assert facts(model_on("diffusion_digits", unlabelled, model=model)).classes == 0


def test_candidates_are_those_that_fit():
    names = {each.name for each in fitting.candidates(LETTERS, "own.txt", Reading())}
    assert names == {"hmm_letters", "hmm_letters_2"}


def test_candidates_have_their_time_and_those_with_a_likelihood_come_first(monkeypatch):
    colour = from_arrays(RNG.integers(0, 256, (60, 8, 8, 3), np.uint8))
    names = ("ae_digits", "vae_digits", "gated_pixelcnn_binarized_mnist", "vae_conv_mnist")
    made = []
    for name in (*names, "dbm_mnist"):
        experiment = replace(EXPERIMENTS[name], binarize="none")
        likelihood = fitting._has_likelihood(experiment, colour)
        made.append(fitting.Candidate(name, {}, experiment, 1, likelihood))
    monkeypatch.setattr(fitting, "candidates", lambda *_: made)
    lines = list(fitting.describe(colour, "photos", Reading()))
    assert max(map(len, lines)) <= 80
    titles = [line for line in lines if line.partition(":")[0] in EXPERIMENTS]
    assert titles == [
        "ae_digits: under a minute",
        "vae_conv_mnist: about 1 min",
        "vae_digits: under a minute; its loss is no likelihood of these values",
        "gated_pixelcnn_binarized_mnist: expensive, about 1.8 h",
        "dbm_mnist: not timed",
    ]
    assert fitting.seconds_of("ae_digits") < fitting.seconds_of("vae_digits")


def test_the_description_is_at_most_80_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("people.csv"), TABLE + TABLE.split("\n", 1)[1].replace("70", "71"))
    arguments = ["people.csv", "--label-column", "group", "--missing", "drop"]
    assert main(["data", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for part in ("rows of 4 (columns)", "standardised", "classes   2: a", "height", "ae_digits"):
        assert part in text
    assert "--data people.csv --label-column group --missing drop" in text.replace(" \\\n     ", "")


def test_own_data_are_trained_resumed_evaluated_and_sampled(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = RNG.normal(size=(100, 2)) * [3, 40] + [5, 100]
    rows = "\n".join(f"{a:.4f},{b:.4f},{'uv'[i % 2]}" for i, (a, b) in enumerate(x))
    write(Path("points.csv"), f"a,b,kind\n{rows}\n")
    command = ["train", "vae_digits", "--data", "points.csv", "--label-column", "kind"]
    command += ["--model.likelihood", "gaussian", "--binarize", "none", "--batch-size", "20"]
    command += ["--model.encoder.hidden", "4", "--model.decoder.hidden", "4", "--steps", "10"]
    assert main(command) == 0
    run = Path("runs/vae_digits-points-seed0")
    assert (run / "samples" / "points.png").exists()
    assert json.loads((run / "config.json").read_text())["reading"]["label_column"] == "kind"
    monkeypatch.chdir(run)
    assert main(["evaluate", "."]) == 0
    nll = json.loads(Path("evaluation.json").read_text())["estimates"]["nll"]
    assert nll["settings"]["log_scale"] == pytest.approx(np.log(3 * 40), abs=0.5)
    assert main(["sample", ".", "--n", "50"]) == 0
    samples = np.load("samples/seed0_n50.npy")
    assert 50 < samples[:, 1].mean() < 150
    assert Path("samples/seed0_n50.csv").read_text().startswith("a,b\n")
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0  # finished
    write(Path("points.csv"), f"a,b,kind\n{rows}\n0.5,0.5,u\n")
    assert main(command) == 2
    assert "was trained on other data" in capsys.readouterr().err
    Path("points.csv").unlink()
    assert main(["evaluate", str(run)]) == 2
    assert "points.csv does not exist" in capsys.readouterr().err


def test_built_in_names_win_over_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "digits", {"x": 12}, colours)
    assert data.load("digits").shape == (8, 8, 1)
    assert data.load("./digits").shape == (6, 5, 3)


def test_options_of_reading_are_for_own_data():
    with pytest.raises(UserError, match=r"digits is built in.*leave --levels 4 out"):
        replace(EXPERIMENTS["ae_digits"], reading=Reading(levels=4))


def test_sequences_of_one_length_in_each_split_are_sequences():
    x = {split: [np.ones((n, 2))] * 3 for split, n in (("train", 3), ("validation", 5))}
    dataset = from_arrays({**x, "test": [np.zeros((2, 2))]})
    assert dataset.shape == (5, 2)
    assert dataset.test["length"].tolist() == [2]
