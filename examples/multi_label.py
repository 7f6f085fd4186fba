"""Several labels at once: which of four complaints a patient has, by six vital signs.

Hospitals differ in what they note down as, say, high blood pressure, so that each adapts the model to its own habits.

    python examples/multi_label.py
"""

import numpy as np

import nufed

COMPLAINTS = ("hypertension", "fever", "hypoxia", "arrhythmia")


def hospital(number: int, num_patients: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Return vital signs [N, 6] in standard units, and which complaints were noted down, 0 or 1 [N, 4]."""
    random = np.random.default_rng(number)
    vitals = random.normal(size=(num_patients, 6)).astype(np.float32)
    what_counts = np.eye(4, 6) + 0.6 * np.random.default_rng(99).normal(size=(4, 6))  # the same everywhere
    threshold = random.normal(scale=1.2, size=4)  # this hospital's habit
    noted = vitals @ what_counts.T + 0.3 * random.normal(size=(num_patients, 4)) > threshold
    return vitals, noted.astype(np.float32)


def main() -> None:
    """Train over ten hospitals, and judge two new ones by F1."""
    hospitals = {f"hospital-{number}": hospital(number) for number in range(12)}
    run = nufed.simulate(
        hospitals,
        "mlp",
        task="multi-label",
        new_clients=["hospital-10", "hospital-11"],
        num_inner_steps=3,
        inner_lr=0.5,
        num_rounds=20,
        primary_metric="f1",
    )
    print(run)
    before, *_, after = run.summary["new"]["metrics"]["test-f1"]
    print(f"F1, mean over {', '.join(COMPLAINTS)}, at new hospitals: {before:.2f} before, {after:.2f} after adaptation")


if __name__ == "__main__":
    main()
