"""Metrics against scikit-learn and SciPy, intervals against theory and a plain bootstrap."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from qexport.errors import ShapeError, UnknownNameError, UsageError, ValueRangeError
from qexport.training.metrics import PairedDrop, compute_metrics, interval, paired_drop, predictions
from qexport.training.tasks import TASKS, Task, custom_task

TWO = custom_task(labels=("no", "yes"))
MATTHEWS = TASKS["cola"]
THREE = custom_task(labels=("a", "b", "c"))
NUMBER = custom_task(regression=True)


def one_hot(ids: npt.ArrayLike, classes: int) -> npt.NDArray[np.float32]:
    rows: npt.NDArray[np.float32] = np.eye(classes, dtype=np.float32)[np.asarray(ids)]
    return rows


def noisy(labels: npt.NDArray[Any], wrong: float, classes: int, seed: int) -> npt.NDArray[np.float32]:
    """Logits whose argmax differs from the label on about the given part of the rows."""
    generator = np.random.default_rng(seed)
    shift = generator.integers(1, classes, len(labels)) * (generator.random(len(labels)) < wrong)
    return one_hot((labels + shift) % classes, classes)


PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)


@given(PAIRS)
@settings(max_examples=30, deadline=None)
def test_counting_metrics_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(pairs).T
    for task, y, p in (
        (THREE, truth, predicted),
        (TWO, truth % 2, predicted % 2),
        (MATTHEWS, truth % 2, predicted % 2),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = {
                "accuracy": sk.accuracy_score(y, p),
                "f1": sk.f1_score(y, p, average="binary", zero_division=0) if task is not THREE else 0.0,
                "f1_macro": sk.f1_score(y, p, average="macro", zero_division=0),
                "matthews": sk.matthews_corrcoef(y, p),
            }
        for metric, value in compute_metrics(task, one_hot(p, task.num_labels), y).items():
            assert value == pytest.approx(expected[metric], abs=1e-12), metric


@given(st.integers(2, 60), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=30, deadline=None)
def test_correlations_equal_scipy(n: int, seed: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=n), generator.normal(size=n)
    if ties:
        x, y = x.round(), y.round()
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return
    values = compute_metrics(NUMBER, x[:, None], y)
    pearson, spearman = stats.pearsonr(x, y)[0], stats.spearmanr(x, y)[0]
    assert values["pearson"] == pytest.approx(pearson, abs=1e-9)
    assert values["spearman"] == pytest.approx(spearman, abs=1e-9)
    assert values["corr"] == pytest.approx((pearson + spearman) / 2, abs=1e-9)


def test_glue_pair_metric_is_the_mean_of_accuracy_and_f1() -> None:
    values = compute_metrics(TASKS["mrpc"], one_hot([1, 1, 0, 0, 1], 2), [1, 1, 1, 0, 0])
    assert values == pytest.approx({"accuracy": 0.6, "f1": 2 / 3, "acc_and_f1": (0.6 + 2 / 3) / 2})


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e30, -7.3])
def test_correlation_of_a_constant_is_zero(constant: float) -> None:
    values = compute_metrics(NUMBER, np.full((50, 1), constant), np.linspace(0, 5, 50))
    assert values == {"pearson": 0.0, "spearman": 0.0, "corr": 0.0}


def test_predictions_take_the_lowest_id_of_a_tie_and_float_for_regression() -> None:
    assert predictions(THREE, np.array([[0.0, 1.0, 1.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]
    assert predictions(NUMBER, np.array([[1.5], [2.0]], dtype=np.float32)).tolist() == [1.5, 2.0]
    assert predictions(NUMBER, np.array([1.5, 2.0])).tolist() == [1.5, 2.0]


@pytest.mark.parametrize(
    ("task", "logits", "labels", "error", "message"),
    [
        (TWO, np.zeros((3, 3)), [0, 0, 0], ShapeError, r"must be \[rows, 2\], got \[3, 3\]"),
        (TWO, np.zeros(3), [0, 0, 0], ShapeError, r"got \[3\]"),
        (TWO, np.zeros((3, 2)), [0, 0], ShapeError, r"must be \[3\]"),
        (TWO, np.array([[0.0, 1.0], [np.nan, 0.0]]), [0, 0], ValueRangeError, "row 1 holds"),
        (TWO, np.zeros((2, 2)), [0, -1], ValueRangeError, r"0\.\.1, row 1 holds -1"),
        (TWO, np.zeros((0, 2)), [], UsageError, "at least one row"),
    ],
)
def test_compute_metrics_refuses(
    task: Task, logits: npt.NDArray[Any], labels: list[int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        compute_metrics(task, logits, labels)


@pytest.mark.parametrize(
    ("task", "metric"), [(TWO, "pearson"), (NUMBER, "accuracy"), (THREE, "f1"), (TWO, "bleu")]
)
def test_interval_refuses_a_metric_of_another_kind_of_task(task: Task, metric: str) -> None:
    logits = np.zeros((4, task.num_labels))
    with pytest.raises(UnknownNameError, match=f"metric '{metric}'"):
        interval(task, metric, logits, [0, 0, 0, 0])
    with pytest.raises(UnknownNameError, match=f"metric '{metric}'"):
        paired_drop(task, metric, logits, logits, [0, 0, 0, 0])


@pytest.mark.parametrize("options", [{"level": 0.0}, {"level": 95}, {"resamples": 10}])
def test_interval_refuses_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        interval(TWO, "f1", np.zeros((4, 2)), [0, 0, 0, 0], **options)


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (20, 20), (800, 872)])
def test_accuracy_interval_is_the_wilson_score_interval(hits: int, n: int) -> None:
    predicted = np.array([1] * hits + [0] * (n - hits))
    low, high = interval(TWO, "accuracy", one_hot(predicted, 2), np.ones(n, dtype=np.int64))
    expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("metric", ["f1", "matthews", "acc_and_f1"])
def test_counting_interval_agrees_with_a_plain_bootstrap(metric: str) -> None:
    labels = np.random.default_rng(1).integers(0, 2, 300)
    logits = noisy(labels, 0.15, 2, seed=2)
    task = TASKS["mrpc"] if metric == "acc_and_f1" else MATTHEWS if metric == "matthews" else TWO
    generator = np.random.default_rng(3)
    plain = []
    for _ in range(1500):
        drawn = generator.integers(300, size=300)
        plain.append(compute_metrics(task, logits[drawn], labels[drawn])[metric])
    low, high = interval(task, metric, logits, labels, resamples=4000)
    assert (low, high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=0.012)


def test_correlation_intervals_agree_with_a_plain_bootstrap() -> None:
    generator = np.random.default_rng(4)
    y = generator.uniform(0, 5, 200).round(1)
    x = (y + generator.normal(size=200)).round(1)[:, None]  # rounding makes ties
    plain = []
    for _ in range(1000):
        drawn = generator.integers(200, size=200)
        plain.append(list(compute_metrics(NUMBER, x[drawn], y[drawn]).values()))
    for metric, values in zip(NUMBER.metrics, np.transpose(plain), strict=True):
        expected = tuple(np.quantile(values, [0.025, 0.975]))
        assert interval(NUMBER, metric, x, y) == pytest.approx(expected, abs=0.012)


def test_interval_covers_the_true_value_about_as_often_as_it_says() -> None:
    # Predictor with a known population F1: P(label 1) = 1/2, 10 % of the rows wrong, so F1 = 0.9.
    inside = 0
    for seed in range(200):
        labels = np.random.default_rng(seed).integers(0, 2, 400)
        low, high = interval(TWO, "f1", noisy(labels, 0.1, 2, seed + 1000), labels, resamples=500)
        inside += low <= 0.9 <= high
    assert 180 <= inside <= 199  # 190 expected, standard deviation 3.1


def test_paired_drop_is_narrower_than_unpaired_when_errors_are_shared() -> None:
    labels = np.random.default_rng(0).integers(0, 2, 872)
    reference = noisy(labels, 0.2, 2, seed=1)
    student = reference.copy()
    student[:9] = student[:9, ::-1]
    found = paired_drop(TWO, "accuracy", reference, student, labels)
    before, after = (compute_metrics(TWO, logits, labels)["accuracy"] for logits in (reference, student))
    assert found.drop == pytest.approx(before - after)
    assert found.low <= found.drop <= found.high
    low, high = interval(TWO, "accuracy", reference, labels)
    assert found.high - found.low < 0.4 * (high - low)
    assert (found.rows, found.level, found.metric) == (872, 0.95, "accuracy")


def test_paired_drop_of_a_model_with_itself_is_zero_without_width() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 100)
    logits = noisy(labels, 0.3, 3, seed=1)
    found = paired_drop(THREE, "f1_macro", logits, logits, labels)
    assert (found.drop, found.low, found.high) == (0.0, 0.0, 0.0)
    y = np.linspace(0, 5, 100)
    found = paired_drop(NUMBER, "corr", y[:, None] + 0.1, y[:, None] + 0.1, y)
    assert (found.drop, found.low, found.high) == pytest.approx((0.0, 0.0, 0.0))


def test_paired_drop_interval_matches_the_normal_theory_of_discordant_rows() -> None:
    # b loses 60 and wins 20 of 2,000 rows: variance of the mean difference = (p10 + p01 - (p10 - p01)^2) / n.
    n, lost, won = 2000, 60, 20
    a = np.array([1] * lost + [0] * won + [1] * (n - lost - won))
    b = np.array([0] * lost + [1] * won + [1] * (n - lost - won))
    found = paired_drop(
        TWO, "accuracy", one_hot(a, 2), one_hot(b, 2), np.ones(n, dtype=np.int64), resamples=8000
    )
    half = 1.96 * np.sqrt((0.03 + 0.01 - 0.02**2) / n)
    assert (found.low, found.high) == pytest.approx((0.02 - half, 0.02 + half), abs=6e-4)


def test_paired_drop_is_antisymmetric_and_seeded() -> None:
    labels = np.random.default_rng(0).integers(0, 2, 300)
    a, b = noisy(labels, 0.1, 2, 1), noisy(labels, 0.2, 2, 2)
    forth, back = (paired_drop(TWO, "accuracy", *pair, labels, resamples=4000) for pair in ((a, b), (b, a)))
    assert forth.drop == -back.drop
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low), abs=0.006)
    assert paired_drop(TWO, "f1", a, b, labels, seed=7) == paired_drop(TWO, "f1", a, b, labels, seed=7)
    assert paired_drop(TWO, "f1", a, b, labels, seed=7) != paired_drop(TWO, "f1", a, b, labels, seed=8)


def test_paired_drop_refuses_different_numbers_of_rows() -> None:
    with pytest.raises(ShapeError, match="got 4 and 5"):
        paired_drop(TWO, "accuracy", np.zeros((4, 2)), np.zeros((5, 2)), [0] * 4)


def test_rows_needed_says_how_many_rows_would_decide() -> None:
    open_case = PairedDrop(metric="accuracy", drop=0.01, low=-0.01, high=0.03, level=0.95, rows=100)
    assert open_case.rows_needed(0.02) == 400  # half the width needs four times the rows
    assert open_case.rows_needed(0.0) == 400
    assert open_case.rows_needed(0.03) == 100  # decided: the whole interval is allowed
    assert open_case.rows_needed(-0.02) == 100  # decided: the whole interval is above
    assert open_case.rows_needed(0.01) is None


@pytest.mark.parametrize(
    ("task", "metric", "n"), [(TWO, "f1", 872), (TWO, "accuracy", 10_000), (NUMBER, "corr", 1500)]
)
def test_paired_drop_is_quick(task: Task, metric: str, n: int) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, n)
    a, b = generator.normal(size=(2, n, task.num_labels))
    start = time.process_time()
    paired_drop(task, metric, a, b, labels)
    assert (
        time.process_time() - start < 8.0
    )  # measured: 0.01, 0.02 and 0.6 s; an unvectorised loop takes minutes
