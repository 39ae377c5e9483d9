"""Bootstrap intervals and p-values: known samples, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_cases import generated, load

from coordexp.evaluation.bootstrap import interval, replicates, two_sided_p
from coordexp.evaluation.protocol import ScoredProtocol


def test_intervals_and_p_values_of_known_samples():
    replicates = np.arange(101) / 100
    assert interval(0.5, replicates) == pytest.approx((0.025, 0.975))
    assert interval(0.4, replicates) == pytest.approx((0.0, 0.775))  # reflected and clipped
    assert interval(0.0, -replicates, (-1.0, 1.0)) == pytest.approx((0.0, 0.975))
    assert interval(0.5, np.array([np.nan])) is None and interval(float("nan"), replicates) is None
    assert two_sided_p(1.0, np.array([0.0, 0.5, 1.0, 2.5])) == 0.5
    assert two_sided_p(1.0, np.ones(100)) == 0.01
    assert two_sided_p(-1.0, -np.ones(100)) == 0.01
    assert two_sided_p(0.0, np.zeros(5)) == 1.0


@pytest.mark.slow
def test_intervals_cover_the_value_of_the_population(tmp_path):
    case = generated(7, lvis=True, images=3000, noise=3)
    rng = np.random.default_rng(0)
    for image_id, found in case.detections.items():
        case.detections[image_id] = [(desc, box, float(rng.uniform())) for desc, box, _ in found]
    ground_truth, found = load(case, tmp_path)
    population = ScoredProtocol("coco", ground_truth, found, 100).statistic(np.ones(3000, dtype=int))
    covered = dict.fromkeys(population, 0)
    for seed in range(60):
        keep = np.zeros(3000, dtype=bool)
        keep[rng.choice(3000, 100, replace=False)] = True
        rows = found.take(keep[found.image]).renumbered(np.cumsum(keep) - 1)
        part = ScoredProtocol("coco", ground_truth.restricted(keep), rows, 100)
        values, drawn = part.statistic(np.ones(100, dtype=int)), replicates(part.statistic, 100, 50, seed)
        for name in covered:
            low, high = interval(values[name], drawn[name])
            covered[name] += low <= population[name] <= high
    # 95% of 60 is 57; few replicates and images lower the coverage slightly
    assert min(covered.values()) >= 49, covered
