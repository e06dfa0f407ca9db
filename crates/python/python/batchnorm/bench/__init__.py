"""`python -m batchnorm.bench`: how much time and memory this package saves on this machine, and where it does not."""
