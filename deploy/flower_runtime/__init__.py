"""The one place that touches Flower's internals: in-process grid, Ray simulation, direct gRPC server and client."""
