"""Libraries that people use, unmodified, on each loop: what they need of a loop has to be there."""
