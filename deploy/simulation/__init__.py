"""The engines of a simulation on one machine: in turn, batched, in several processes, or on Ray."""
