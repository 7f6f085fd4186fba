"""Differential privacy and secure aggregation: what is accounted, clipped, noised and withheld; see docs/privacy.md."""
