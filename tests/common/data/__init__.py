"""Claims about sources, partitions and splits."""
