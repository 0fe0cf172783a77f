"""Simic, the learner: makes policies for Tamiyo from the decisions and reports of the log."""
