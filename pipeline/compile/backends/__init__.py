"""The backends that a pipeline's programs are compiled by: one file each, tried in an order."""
