"""What the parts of a training script of torch are here. The script is read, and neither imported nor run."""
