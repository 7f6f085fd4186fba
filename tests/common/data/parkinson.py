"""Data like those of Parkinson telemonitoring: two scores of 5 to 55, measures of a voice in mixed units."""

import numpy as np

UNITS = (65.0, 1e-3, 1e-2, 0.5, 1e4, 20.0, 1e-5, 150.0)
"""Age, jitters, a shimmer, a ratio, a frequency, …: one unit each."""


def parkinson(num_patients=42, num_visits=30, seed=0):
    """Return {patient: (measures [N, 8], scores [N, 2])}; each patient has a level and a response of its own."""
    rng = np.random.default_rng(seed)
    response, patients = rng.normal(size=(len(UNITS), 2)), {}
    for number in range(num_patients):
        measures = rng.normal(size=(num_visits, len(UNITS)))
        scores = (
            rng.uniform(8, 40) + 2 * measures @ (response * rng.uniform(0.5, 1.5)) + rng.normal(size=(num_visits, 2))
        )
        patients[f"patient-{number:02d}"] = (0.3 * measures + 1) * UNITS, np.clip(scores + np.array([0.0, 8.0]), 5, 55)
    return patients
