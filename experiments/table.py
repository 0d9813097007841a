"""Make RESULTS.md from the result files: every estimate, and the likelihoods by data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.folder import is_clean, read_json
from experiments.published import PUBLISHED
from gen.core import facts
from gen.estimate import MARKS, Estimate, from_json, to_json

Record = dict[str, Any]
"""The content of a result file."""

NEEDED = (
    *("experiment", "data", "binarize", "estimates", "seeds", "parameters", "train_seconds"),
    *("device", "command", "commit"),
)
"""Keys that every result file has."""

TITLES = {
    "binarized_mnist": "MNIST, binarised once (Larochelle; 50,000 / 10,000 / 10,000)",
    "mnist": "MNIST, binarised dynamically",
    "digits": "scikit-learn's digits, 8 × 8, binarised dynamically",
    "mnist_grey": "MNIST, 256 grey levels, bits per pixel",
    "digits_grey": "scikit-learn's digits, 8 × 8, 17 grey levels, bits per pixel",
    "uci_dna": "DNA (180 binary variables)",
    "uci_mushrooms": "mushrooms (112 binary variables)",
    "uci_nips": "NIPS-0-12 (500 binary variables)",
    "news": "20 newsgroups (100 binary variables, split by distinct documents)",
    "jsb": "JSB chorales, nats per time step",
    "nottingham": "Nottingham, nats per time step",
    "letters": "letters of tiny Shakespeare, nats per symbol",
}
"""Titles of the likelihood tables, in their order: one for each data set, or two where the data
have grey levels and are also binarised."""

PER_STEP = ("jsb", "nottingham", "letters")
"""Data sets of sequences, whose table has nats per time step."""
DYNAMIC = ("mnist", "digits")
"""Data sets of grey images, whose table in nats is for dynamic binarisation."""
GREY = "_grey"
"""Suffix of the tables of grey levels, in bits per pixel."""

ESTIMATE_UNITS = {
    "bits": "bits",
    "bits_per_dim": "bits/dim",
    "bits_per_dim_ode": "bits/dim",
    "d_accuracy": "share",
    "d_fake": "probability",
    "d_pairs": "share",
    "d_real": "probability",
    "error": "share",
    "ess": "effective draws",
    "mse": "squared error",
    "nmi": "ratio of nats",
    "probe_error": "share",
    "probe_error_raw": "share",
    "retrieval_precision": "share",
    "retrieval_precision_raw": "share",
    "tuned_error": "share",
}
"""Units of estimates, by name, in models that do not state another unit of a metric of that name.
All others are in nats."""
JUDGED = "judge.json"
"""Name of the file with the judgement of a model's samples."""

MEASURES = {
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "vendi_score": "Vendi score",
    "class_kl": "class KL",
    "neighbour_distance": "distance to training",
    "copies": "copies",
    "labels_read_back": "labels read back",
    "trained_on_samples": "trained on samples",
    "modes": "modes",
    "mode_kl": "mode KL",
}
"""Names of the measures of samples."""
ANCHORS = {"train": "training examples", "mixture": "mixture of Gaussians", "test": "test examples"}
"""Names of the figures that stand beside the measures of samples."""

HEADER = """\
# Results

`python -m experiments table` makes this page from the result files in this folder, written by
`python -m experiments evaluate RUN --publish`. Each file has the command of its run, the commit,
the device, the cost and the values for each seed.

Every value is measured on the test split. ± is the standard error over its examples.
Hyperparameters were chosen on the validation split; so were the step of the evaluated state in runs
that validate, and the best of several restarts.

*Seconds* are the training time of all seeds together, with compiling. On an H100 other runs shared
the GPU. *Commit* is the commit at which the run was trained. *Commit not recorded* means that files
had been changed since the commit when the run was trained or evaluated.
"""

ESTIMATES = """\
## All estimates

*n* is the number of examples, or for log Z the number of AIS chains. *± over seeds* is the standard
error of the mean over seeds. *Kind* is the relation of a value to the quantity: `exact`; an `upper
bound`, below which the quantity lies; `AIS`, an estimate whose normaliser comes from annealed
importance sampling; an `upper bound (AIS)`, a bound with such a normaliser; `Monte Carlo`, an
unbiased estimate from draws; `no likelihood`, a training loss that looks like a likelihood and is
none.
"""

EXPLANATIONS = """\
- `nll` is the negative log-likelihood in nats per example, or a bound on it if its kind says so.
  For the VAEs with one draw of z per image the bound is −ELBO; for `vae_binarized_mnist` and
  `iwae_binarized_mnist` it is the importance-weighted bound of 5,000 draws. For music, letters and
  earthquakes it is per time step; `bits` is the same in bits, and `total_nll` is for whole
  sequences. For continuous data (`diffusion_toy`, `hmm_regimes*`) it is of a density.
- `nll` of a Boltzmann machine takes the forward estimate of annealed importance sampling for log Z
  where log Z is too large to be summed. `nll_reverse` takes the reverse estimate. The truth is
  expected between the two. `log_z`, `log_z_forward` and `log_z_reverse` are the exact value and the
  two estimates of log Z itself.
- `bits_per_dim` is `nll` in bits per pixel.
- `nll` of a diffusion model is a bound in infinitely many steps, or in the steps that the model
  has. `nll_100` is the bound of the same network in 100 steps.
- A name that ends in `_ode` is for the probability flow, and so are all values of flow matching.
  They are means over the first *n* images of the test split.
- Grey levels reach a density by dequantization: by the model's own noise at t = 0 for Gaussian
  diffusion, by uniform noise for flow matching and Gaussian RBMs.
- `nll` of `diffusion_toy` can be compared with the entropy of its data, −2.907 nats. Their true
  density gives the test points −2.921 ± 0.014. `nll` of `hmm_regimes*` can be compared with 147.8 ±
  3.0, which the true density gives the test sequences.
- `negative_elbo` is −ELBO, where `nll` is a tighter bound. `reconstruction`, `kl`, `prior` and
  `diffusion` are terms of a bound, in nats. `ess` is the effective sample size of the importance
  weights. For a Boltzmann machine `reconstruction` is the squared error per variable of one
  reconstruction.
- `mse` is the squared error per pixel in [0, 1].
- `error` is the error rate of a classifier of the images.
- `d_accuracy` is the share of test images and samples that the final discriminator tells apart,
  `d_real` and `d_fake` are its mean outputs. `d_pairs` is the share of pairs of a test image and a
  sample in which the image has the higher output; losses that only compare outputs have it in place
  of `d_accuracy`. They measure the game; a GAN has no likelihood.
- `information` is a lower bound on the mutual information of an InfoGAN's codes and its samples, in
  nats. `nmi` is the normalised mutual information of its first categorical code and the label, of
  the relative frequencies on the test split.
- `probe_error` is the error rate of a linear classifier on the hidden units, `probe_error_raw` on
  the raw variables. `tuned_error` is the error rate after the hidden layers have been trained
  together with the classifier, with dropout if validation prefers it. `retrieval_precision` is the
  share of the ten nearest training examples that have the same label, `retrieval_precision_raw` is
  for the raw variables.
"""

LIKELIHOODS = """\
## Likelihoods by data set

Negative log-likelihoods of the test split in nats per example; of sequences in nats per time step.
Lower is better, and rows are sorted by the value that is printed.

Values of different kinds have no order among them. An exact value carries no mark. ≤ marks an upper
bound: the true value lies at or below it. ≈ marks an estimate whose normaliser comes from annealed
importance sampling; *reverse end* is the value by the reverse chains, and the truth is expected
between both. ≲ marks an upper bound with such a normaliser. The bound of a diffusion model is the
bound of the chain; *by the flow* is the value by the probability flow, on the number of examples
that the file states. *Spread* is the standard error of the mean over seeds. *Distance* is the
difference to the published figure; a negative distance is better.
"""


JUDGEMENTS = """\
## Samples, judged by a classifier

`python -m experiments judge RUN --publish` writes these figures. A classifier of the project gives
the features, so no figure is the FID of the literature. ± is the standard error over samples, of
both distances also over test examples, of recall and coverage over test examples alone; in brackets
stands the error over seeds. *Training examples* in place of samples show the value of a perfect
model, except that they are copies. *Class KL* is in nats. BUILD.md says what each measure means.
"""


FAULTS = """\
## Faults of training

Warnings that published runs gave while they trained, each where a report first showed the fault.
`gan_collapsed_digits` fails on purpose.
"""

FEATURES = """\
`python -m experiments features RUN --publish` writes these error rates on the test split, by the
number of labels. ± is the standard error over draws of the labelled examples. *Untrained* is the
first state of the model. Layers and hyperparameters are chosen by cross-validation among the
labelled examples alone. BUILD.md says what each method is.
"""

ODDS = """\
Each row is the mean over 20 tabular sets of a detector that was trained on half of the normal rows
and tested on the others and all anomalies (`python -m experiments protocol odds NAME`). """

COMPLETIONS = """\
`complete RUN ...` hides a part of each test example and draws this part K times given the rest.
*−log p* is −log p(hidden | shown) of the true hidden part, exact, in nats. *Squared error* is the
error of the mean of the draws, per hidden variable; for binary pixels it is the Brier score.
*Coverage* is the share of examples whose sum of hidden variables lies in the central 90 % of the
draws; it is 90 % if truth and draws have the same law. *Neighbours* are the K training examples
that are nearest in the shown variables; they take the place of draws. Figures of binary and of grey
pixels cannot be compared.
"""

LATENT = """\
The codes of test examples, by `latent RUN`. *Active units* are dimensions whose mean code has a
variance above 0.01 over the examples. *KL* is of q(z|x) from N(0, I), per example. On data of known
factors, *MIG* is the mutual information gap and *FactorVAE score* the accuracy with which the
steadiest dimension tells the fixed factor. BUILD.md says what each figure means.
"""

USES: dict[str, tuple[str, str]] = {
    "features": ("Features", FEATURES),
    "anomaly": (
        "Anomalies",
        "Each row says how well the score of a model tells anomalies from normal test examples "
        "(`anomaly RUN`). An alarm is a conformal p-value of at most the stated rate; the "
        "Benjamini-Hochberg procedure chooses the discoveries.\n",
    ),
    "odds": (
        "Anomalies in 20 tables",
        f"{ODDS}The seed draws the half, and equal normal rows are on one side of the split.\n",
    ),
    "odds_published": (
        "Anomalies in 20 tables, by the split of the published figures",
        f"{ODDS}The split is the one of Livernoche et al. 2023 (https://arxiv.org/abs/2305.18593): "
        "the first half in the order of the file, and sets of fewer than 1,000 rows are resampled "
        "to 1,000 first, so that copies of training rows are in the test split. Published means "
        "(https://github.com/vicliv/DTE, table 1 of its README): ICL 89.5, KNN 89.3, DTE-NP 89.2, "
        "LOF 87.5, DTE-C 87.4, DDPM 87.2, isolation forest 84.7, VAE 82.4, PCA 81.9. Without "
        "repeats: the normal test rows that equal a training row are left out.\n",
    ),
    "one_class_mnist": (
        "Anomalies in MNIST: one digit against the others",
        "Each row is the mean over the ten classes of a detector that was trained on one class and "
        "tested on the whole test split (`python -m experiments protocol one_class_mnist NAME`). "
        "Published: Deep SVDD 94.8 (Ruff et al. 2018, "
        "https://proceedings.mlr.press/v80/ruff18a.html).\n",
    ),
    "one_class_fashion_mnist": (
        "Anomalies in Fashion-MNIST: one class against the others",
        "As for MNIST (`python -m experiments protocol one_class_fashion_mnist NAME`).\n",
    ),
    "complete": ("Completions of occluded test examples", COMPLETIONS),
    "latent": ("Codes", LATENT),
    "defects": (
        "Defects in images, pixel by pixel",
        "`anomaly RUN` writes these figures for data whose test split says which pixels belong to "
        "defects: the AUROC of images, by the mean of the heat map and by its maximum after a "
        "Gaussian filter of 1 pixel, and of all pixels, in which ± is over images.\n",
    ),
    "onset": (
        "Onsets of faults in series",
        "`anomaly RUN` writes these figures for data whose test split says when a fault begins. "
        "*False alarms* is the share of normal series with an alarm in any step. *Early* is the "
        "share of faults with an alarm before the onset, *found* the share whose first alarm comes "
        "later, *delay* the mean number of steps from the onset to it.\n",
    ),
    "documents": (
        "Words and groups of documents",
        """\
`python -m experiments documents RUN --publish` writes these figures. *Σ −log p(word)* is the
negative log pseudo-likelihood: the sum over all words of −log p(the word is there, or is not there
| all other words), the mean over test documents. *Missing word in 10* is the share of test
documents in which a removed word is among the ten most likely ones to be missing. *Group error* and
*−log p(group)* judge p(group | words): Bayes' rule where the group is among the variables of the
model (`news_groups`), else logistic regression on its codes. The other rows are of simple models of
the same documents.
""",
    ),
}
"""For each command that uses trained models: the heading and the explanation of its tables."""


def records(folder: Path) -> list[Record]:
    """Return the result files of a folder, by name. Raise `UserError` if a file is damaged."""
    read = (read_json(path, *NEEDED) for path in sorted(folder.glob("*_*.json")))
    return [record for record in read if record]


def markdown(folder: Path) -> str:
    """Return RESULTS.md: all estimates, the likelihoods by data set, and the uses of models."""
    results = records(folder)
    parts = [HEADER, ESTIMATES, rows_as_markdown(estimate_rows(results)), EXPLANATIONS, LIKELIHOODS]
    for data, title in TITLES.items():
        rows, sources = likelihood_rows(results, data)
        if rows:
            parts += [f"### {title}\n", rows_as_markdown(rows)]
            if sources:
                parts.append("".join(f"[{i}] {each}  \n" for i, each in enumerate(sources, 1)))
    if judged := judgements(folder):
        parts.append(JUDGEMENTS)
    for title, of_table in judged.items():
        parts += [f"### {title}\n", rows_as_markdown(judgement_rows(of_table))]
    if rows := fault_rows(results):
        parts += [FAULTS, rows_as_markdown(rows)]
    for command, (heading, explanation) in USES.items():
        if rows := use_rows(folder, command):
            parts += [f"## {heading}\n", explanation, rows_as_markdown(rows)]
    return "\n".join(parts)


def fault_rows(results: Sequence[Record]) -> list[dict[str, str]]:
    """Return a row of cells by column for every fault of training in the result files."""
    return [
        {"experiment": f"`{record['experiment']}`", "warning": line.partition("; try ")[0]}
        for record in results
        for line in record.get("faults", ())
    ]


def judgements(folder: Path) -> dict[str, list[Record]]:
    """Return the judged models of a folder, by the title of the table that they share.

    Figures of one table have the same test examples, classifier and number of samples.
    """
    tables: dict[str, list[Record]] = {}
    for path in sorted(folder.glob(f"*/{JUDGED}")):
        record = read_json(path, "experiment", "data", "samples", "estimates", "anchors")
        if record:
            title = (
                f"{record['data']}, binarize {record['binarize']}: {record['samples']:,} samples "
                f"against {record['test_examples']:,} test examples, by "
                f"`{record['classifier']['experiment']}` {record['classifier']['sha256'][:8]}"
            )
            tables.setdefault(title, []).append(record)
    return tables


def use_rows(folder: Path, command: str) -> list[dict[str, str]]:
    """Return the rows of the published results of a command, each with its experiment in front.

    The files of one experiment are COMMAND.json, and COMMAND-VARIANT.json of other settings.
    """
    rows = []
    paths = [*folder.glob(f"*/{command}.json"), *folder.glob(f"*/{command}-*.json")]
    for path in sorted(paths):
        record = read_json(path, "experiment", "rows")
        if record:
            rows += [{"experiment": f"`{record['experiment']}`", **row} for row in record["rows"]]
    return row_cells(rows)


def row_cells(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return rows with all columns that one of them has, as text.

    Args:
      rows: texts, numbers, and estimates or their JSON by column.
    """

    def text(value: Any) -> str:
        if isinstance(value, Estimate):
            return cell(to_json(value))
        if value is None or isinstance(value, Mapping):
            return cell(value)
        if isinstance(value, str):
            return value
        is_long = float(value).is_integer() or abs(value) >= 100  # .3g writes 1234.5 as 1.23e+03
        return f"{value:,.0f}" if is_long else f"{value:.3g}"

    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: text(row.get(column)) for column in columns} for row in rows]


def judgement_rows(results: Sequence[Record]) -> list[dict[str, str]]:
    """Return a row of cells by column for each anchor and for each judged model of one table.

    Models are sorted by their first measure.
    """
    first = next(iter(results[0]["estimates"]))
    ordered = sorted(results, key=lambda record: record["estimates"][first]["value"])
    used = {name for record in results for name in record["estimates"]}
    rows = [(f"*{ANCHORS[each]}*", figures, "–") for each, figures in results[0]["anchors"].items()]
    rows += [(f"`{each['experiment']}`", each["estimates"], seeds(each)) for each in ordered]
    return [
        {
            "samples of": name,
            "seeds": count,
            **{MEASURES[each]: cell(figures.get(each)) for each in MEASURES if each in used},
        }
        for name, figures, count in rows
    ]


def cell(fields: Mapping[str, Any] | None) -> str:
    """Return an estimate as `value ± stderr`, with the error over seeds in brackets, or a dash."""
    if fields is None:
        return "–"
    value = from_json(fields)
    over_seeds = value.settings.get("seeds_stderr")
    return number(value) + (f" (± {over_seeds:.2g})" if over_seeds is not None else "")


def rows_as_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows of cells by column as a Markdown table."""
    if not rows:
        return ""
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def terminal(folder: Path, data: str) -> Any:
    """Return the likelihood table of one data set with the columns that a terminal has room for."""
    from rich.table import Table

    rows, _ = likelihood_rows(records(folder), data)
    columns = ("experiment", "test", "kind", "spread", "published", "distance")
    out = Table(*columns, title=TITLES[data])
    for row in rows:
        out.add_row(*(row[column].strip("`") for column in columns))
    return out


def estimate_rows(results: Sequence[Record]) -> list[dict[str, str]]:
    """Return a row of cells by column for every estimate of every result file."""
    rows = []
    for record in results:
        for name, fields in record["estimates"].items():
            estimate = from_json(fields)
            rows.append(
                {
                    "experiment": f"`{record['experiment']}`",
                    "estimate": f"`{name}`",
                    "value ± over examples": number(estimate),
                    "kind": estimate.kind,
                    "n": f"{estimate.n:,}",
                    "seeds": seeds(record),
                    "± over seeds": spread(estimate),
                    "parameters": f"{record['parameters']:,}",
                    "seconds": f"{record['train_seconds']:,.0f}",
                    "commit": commit(record),
                }
            )
    return rows


def likelihood_rows(results: Sequence[Record], data: str) -> tuple[list[dict[str, str]], list[str]]:
    """Return the likelihoods of one data set by rising value, and the sources of published figures.

    Only probabilities of discrete data have a place, no densities.

    Args:
      results: all result files.
      data: a key of TITLES.

    Returns:
      Rows of cells by column, and the sources that the cells number from 1.
    """
    measure = "bits_per_dim" if data.endswith(GREY) else "nll"
    chosen = [
        (from_json(record["estimates"][measure]), record)
        for record in results
        if measure in record["estimates"] and belongs(record, data)
    ]
    rows, sources = [], []
    for estimate, record in sorted(chosen, key=lambda pair: pair[0].value):
        name, mark = record["experiment"], MARKS[estimate.kind]
        published = PUBLISHED.get(name)
        reference, distance = "–", "–"
        if published:
            sources.append(published.source)
            value = f"{MARKS[published.kind]} {published.value:.2f}".strip()
            reference = f"{value} [{len(sources)}]"
            if published.kind == estimate.kind:
                distance = f"{estimate.value - published.value:+.2f}"
        rows.append(
            {
                "experiment": f"`{name}`",
                "test": f"{mark} {number(estimate)}".strip(),
                "kind": detailed_kind(estimate, record, measure),
                "seeds": seeds(record),
                "spread": spread(estimate),
                "parameters": f"{record['parameters']:,}",
                "seconds": f"{record['train_seconds']:,.0f}",
                "device": record["device"],
                "published": reference,
                "distance": distance,
                "command": f"`{record['command']}`",
                "commit": commit(record),
            }
        )
    return rows, sources


def belongs(record: Record, data: str) -> bool:
    """Return whether a result is a probability of discrete data that the table of `data` shows."""
    nll = record["estimates"].get("nll")
    if not nll or nll["settings"].get("density"):
        return False
    binarize = "dynamic" if data in DYNAMIC else "none"
    per_step = nll["settings"].get("per") == "step"
    shown = (record["data"], record["binarize"]) == (data.removesuffix(GREY), binarize)
    return shown and per_step == (data in PER_STEP)


def detailed_kind(estimate: Estimate, record: Record, measure: str) -> str:
    """Return the kind of a likelihood, with the settings and the other values that explain it.

    Args:
      estimate: the likelihood.
      record: its result file.
      measure: the name of the estimate, `nll` or `bits_per_dim`.
    """
    kind, estimates = str(estimate.kind), record["estimates"]
    draws = estimate.settings.get("z_per_example", 1)
    if draws > 1:
        kind += f", {draws:,} samples"
    if "nll_reverse" in estimates:
        kind += f", reverse end {estimates['nll_reverse']['value']:.2f}"
    if f"{measure}_ode" in estimates:
        kind += f", by the flow {estimates[f'{measure}_ode']['value']:.3f}"
    if estimate.settings.get("conditional"):
        kind += ", given labels"
    if how := estimate.settings.get("dequantized"):
        kind += f", dequantized ({how})"
    return kind


def number(estimate: Estimate) -> str:
    """Return `value ± stderr` with two digits of the error."""
    return str(estimate).split(" (")[0]


def estimate_unit(model: Any, name: str) -> str:
    """Return the unit of an estimate of a model."""
    return facts(model).metric_units.get(name) or ESTIMATE_UNITS.get(name, "nats")


def marked(estimate: Estimate) -> str:
    """Return `value ± stderr` after the sign of the estimate's kind, if it has one."""
    return f"{MARKS[estimate.kind]} {number(estimate)}".strip()


def seeds(record: Record) -> str:
    """Return the number of seeds of a result, or of the restarts whose best it is."""
    restarts = record.get("restarts")
    return f"best of {len(restarts)}" if restarts else str(len(record["seeds"]))


def spread(estimate: Estimate) -> str:
    """Return the standard error over seeds, or a dash for one seed."""
    stderr = estimate.settings.get("seeds_stderr")
    return "–" if stderr is None else f"± {stderr:.2g}"


def commit(record: Record) -> str:
    """Return the commit of a result in short, if it was trained and evaluated at clean commits."""
    clean = is_clean(record.get("commit")) and is_clean(record.get("evaluated_at_commit"))
    return record["commit"][:7] if clean else "commit not recorded"
