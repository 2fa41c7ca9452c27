"""What runs on the remote host: one executable that unpacks a job, runs it, and writes down what happened."""

__version__ = "0.2.0"
