"""Verdicts on published claims."""

from typing import Any

import pytest

from twinckpt.analysis.claims import CLAIMS, at_least, below, holds, judge, near
from twinckpt.analysis.metrics import BY_NAME
from twinckpt.analysis.targets import TARGETS, Target
from twinckpt.core.paper_points import paper_points


def metric(value: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (14.0, 13.0, 15.0, "reproduced"),
        (13.0, 12.0, 14.0, "reproduced"),  # 13.7 lies in the interval
        (20.0, 19.0, 21.0, "reproduced"),
        (5.0, 4.0, 6.0, "in shape"),
        (1.2, 0.9, 1.5, "not reproduced"),
        (0.5, 0.4, 0.6, "not reproduced"),
        (5.0, None, None, "in shape"),
        (9.0, 0.5, 20.0, "not reproduced"),  # too wide to tell even the direction
    ],
)
def test_gain(value: float, low: float | None, high: float | None, verdict: str) -> None:
    """At least 13.7: reached, the same direction for sure, or neither."""
    assert at_least(13.7, 1.0)(metric(value, low, high)) == verdict


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (2.0, 1.0, 3.0, "reproduced"),
        (4.0, 1.0, 7.0, "in shape"),
        (6.0, 4.0, 8.0, "not reproduced"),
    ],
)
def test_limit(value: float, low: float, high: float, verdict: str) -> None:
    """Below 5: surely, in the median, or not."""
    assert below(5.0)(metric(value, low, high)) == verdict


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(65.0, "reproduced"), (59.0, "reproduced"), (80.0, "in shape"), (90.0, "not reproduced")],
)
def test_prediction(value: float, verdict: str) -> None:
    """Within 10 % of the published 65, within 30 %, or neither."""
    assert near(65)(metric(value, None, None)) == verdict


def test_what_is_only_predicted_says_so() -> None:
    """Every claim that a paper_ or goodput_ metric decides."""
    for claim in CLAIMS:
        is_model = BY_NAME[claim.metric].experiment == "wasted_time"
        assert claim.evidence == ("predicted" if is_model else "measured")


def test_one_difference_is_enough_to_fail() -> None:
    """Identical means in every sample."""
    assert holds(metric(1.0, None, None)) == "reproduced"
    assert holds(metric(0.0, None, None)) == "not reproduced"


def test_no_claim_is_left_out() -> None:
    """Without any measurement every claim is listed as not measured."""
    judgements = judge({"hardware": {}, "metrics": []})
    assert [one.name for one in judgements] == [claim.name for claim in CLAIMS]
    assert {one.verdict for one in judgements} == {"not measured"}


def test_claims_ask_for_metrics_that_exist() -> None:
    """A misspelt metric would stay unmeasured for ever."""
    assert {claim.metric for claim in CLAIMS} <= BY_NAME.keys()


def test_targets_ask_for_metrics_that_exist() -> None:
    """Nor would a target with a misspelt metric ever be missed."""
    named = {target.metric for target in TARGETS} | {target.plain for target in TARGETS}
    assert named <= {"", *BY_NAME}


@pytest.mark.parametrize(
    ("target", "value", "outcome"),
    [
        (Target("lost_steps", most=1), 1.0, "met"),
        (Target("lost_steps", most=1), 1.1, "missed"),
        (Target("committed_steps_percent", least=90), 90.0, "met"),
        (Target("committed_steps_percent", least=90), 89.0, "missed"),
    ],
)
def test_a_target_is_met_on_its_own_side_of_the_limit(
    target: Target, value: float, outcome: str
) -> None:
    """At most and at least are not confused, and the limit itself is reached."""
    assert target.outcome({target.metric: metric(value, None, None)}) == outcome
    assert target.outcome({}) == "not measured"


def test_every_published_point_has_a_verdict() -> None:
    """None of the paper's numbers that are predicted is left out."""
    judged = {claim.metric for claim in CLAIMS}
    assert {f"paper_{point.name}" for point in paper_points()} <= judged
