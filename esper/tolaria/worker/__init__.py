"""Runs taken from the log: claims, attempts, the live journal, halts, and how a run ends."""
