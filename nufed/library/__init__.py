"""NuFed from Python: what `import nufed` offers. Knows all other packages; none of them knows it."""
