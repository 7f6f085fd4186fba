"""How the inner steps of `nufed.common.meta` are computed fast: by hand, compiled, batched over clients."""
