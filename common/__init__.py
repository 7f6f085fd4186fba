"""Words, data and mathematics that the server and the clients share; imports none of the other packages."""

__version__ = "0.1.0"
