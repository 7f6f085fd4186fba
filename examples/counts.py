"""Counts: how many bicycles are hired at a station in an hour, by time of day, temperature and rain.

A station at a railway is busy at eight, one at a lake at three in the afternoon. The model predicts the logarithm of
the rate, and the loss is that of a Poisson regression.

    python examples/counts.py
"""

import numpy as np

import nufed


def station(number: int, num_hours: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs [N, 4] (sine and cosine of the hour, temperature, rain) and counts [N, 1]."""
    random = np.random.default_rng(number)
    hour, temperature, rain = random.uniform(0, 24, num_hours), random.normal(size=num_hours), random.random(num_hours)
    busiest, size = random.uniform(6, 18), random.uniform(0.5, 2.0)
    angle = 2 * np.pi / 24
    rate = np.exp(size + np.cos(angle * (hour - busiest)) + 0.4 * temperature - 1.0 * rain)
    inputs = np.stack([np.sin(angle * hour), np.cos(angle * hour), temperature, rain], axis=1)
    return inputs.astype(np.float32), random.poisson(rate)[:, None].astype(np.float32)


def main() -> None:
    """Train over twelve stations, and judge three new ones by the mean absolute error, in bicycles."""
    stations = {f"station-{number:02}": station(number) for number in range(15)}
    run = nufed.simulate(
        stations,
        "mlp",
        task="counts",
        new_clients=["station-12", "station-13", "station-14"],
        num_inner_steps=3,
        inner_lr=0.02,
        local_lr=0.02,
        num_rounds=15,
    )
    print(run)
    before, *_, after = run.summary["new"]["metrics"]["test-mae"]
    print(f"Mean absolute error at new stations: {before:.2f} bicycles before, {after:.2f} after adaptation")


if __name__ == "__main__":
    main()
