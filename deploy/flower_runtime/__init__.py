"""What is used of Flower beyond its documented modules, by area: the one place to look at when Flower changes."""
