"""Projections as folders, the versions of them that are kept, and the files that each version has."""
