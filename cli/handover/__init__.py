"""Files that `pipe package` copies into a folder: they import each other as there, and nothing of this project."""
