"""Files that are filled beside those that count."""
