"""Clients' own data, read where they lie: tables, arrays, image folders, functions; checked before the first step."""
