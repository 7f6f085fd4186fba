"""A Flower app whose clients learn a starting point that each adapts to its own sensors."""
