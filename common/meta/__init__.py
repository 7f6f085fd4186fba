"""The algorithm: ν inner steps, the meta-gradient of the loss after them, and τ meta steps on a client."""
