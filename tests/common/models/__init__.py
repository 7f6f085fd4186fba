"""Claims about models."""
