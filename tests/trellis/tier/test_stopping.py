"""Early stopping: at a target, or after evaluations without progress."""

from __future__ import annotations

from trellis.descriptor import Stop
from trellis.tier.stopping import Progress, advance


def after(stop: Stop | None, values: list[float], metric: str = "accuracy") -> Progress:
    progress = Progress()
    for number, value in enumerate(values, start=1):
        progress = advance(progress, stop, {metric: value}, number)
    return progress


def test_without_a_rule_nothing_stops() -> None:
    assert after(None, [0.1, 0.1, 0.1]) == Progress()


def test_a_target_stops_in_the_round_that_reaches_it() -> None:
    stop = Stop(metric="accuracy", target=0.9)
    assert after(stop, [0.5, 0.89]).reason is None
    assert after(stop, [0.5, 0.9]).reason == "accuracy 0.9000 reached 0.9 in round 2"


def test_a_loss_is_better_when_it_is_lower() -> None:
    stop = Stop(metric="loss", target=0.2)
    assert after(stop, [0.5, 0.21], "loss").reason is None
    assert after(stop, [0.5, 0.19], "loss").reason == "loss 0.1900 reached 0.2 in round 2"


def test_patience_counts_evaluations_since_the_best() -> None:
    stop = Stop(metric="accuracy", patience=2)
    assert after(stop, [0.5, 0.6, 0.6]) == Progress(best=0.6, waited=1)
    stopped = after(stop, [0.5, 0.6, 0.6, 0.55])
    assert stopped.reason == "accuracy has not been better than 0.6000 for 2 evaluations, in round 4"


def test_a_better_value_starts_the_patience_anew() -> None:
    stop = Stop(metric="accuracy", patience=2)
    assert after(stop, [0.5, 0.4, 0.6, 0.5]) == Progress(best=0.6, waited=1)


def test_a_round_without_the_metric_changes_nothing() -> None:
    stop = Stop(metric="accuracy", patience=1)
    assert advance(Progress(best=0.5), stop, {"loss": 1.0}, 2) == Progress(best=0.5)
