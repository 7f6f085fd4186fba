"""Words, data and mathematics that the server and the clients share; imports none of the other packages."""


def __getattr__(name: str) -> str:
    """Return `__version__`, looked up when it is asked for."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nufed.common.version import read_version

    return read_version()
