"""Early exits and their static peers on one plane: AP against time."""
