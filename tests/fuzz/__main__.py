"""`python -m tests.fuzz [MINUTES]`: all targets, pass after pass with other seeds, until the time is over."""

import os
import subprocess
import sys
import time

FASTEST_PASS = 5.0


def main(minutes: float) -> int:
    """Return the exit status of the first pass that fails, else 0."""
    end, number, longest = time.monotonic() + 60 * minutes, 0, FASTEST_PASS
    while (left := end - time.monotonic()) > longest or not number:
        number += 1
        seed = int.from_bytes(os.urandom(4), "big")
        print(f"pass {number}, --hypothesis-seed={seed}, {left / 60:.1f} minutes left", flush=True)
        options = ["-q", "-x", "-p", "no:cacheprovider", "--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}"]
        began = time.monotonic()
        try:
            status = subprocess.run(
                [sys.executable, "-m", "pytest", "tests/fuzz", *options], check=False, timeout=left
            ).returncode
        except subprocess.TimeoutExpired:
            print("time is over; the last pass was not finished")
            return 0
        if status:
            return status
        longest = max(longest, time.monotonic() - began)
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0))
