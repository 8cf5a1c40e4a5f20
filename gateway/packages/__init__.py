"""Packages: the files of a commit, packed, stored and expired."""
