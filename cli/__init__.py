"""The `pipe` command: the only code here that prints."""
