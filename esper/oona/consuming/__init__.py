"""The one consumer loop: membership of a group, assignment, handling, slow handlers."""
