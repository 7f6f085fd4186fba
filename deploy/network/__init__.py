"""The network runtime: long-lived server and client processes over Flower's Fleet gRPC API, with TLS and node keys."""
