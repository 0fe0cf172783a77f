"""The one process that writes a home's projections and answers for them."""
