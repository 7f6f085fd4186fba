"""Finding ν, α and β for one federation: a search on clients held out as if they were new, and its result."""
