"""Claims about what both sides share."""
