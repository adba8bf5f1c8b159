"""What a run needs on a TPU, and how to launch it there."""
