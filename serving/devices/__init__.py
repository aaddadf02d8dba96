"""Other machines that a file is run on: how they are reached, what they are, and what is copied there."""
