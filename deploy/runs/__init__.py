"""Runs that are there already, read from their folders: lists, comparisons, figures, and removing old ones."""
