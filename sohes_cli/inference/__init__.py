"""A trained model at work: photographs -> masks, scores and the forest that the ancestor head or geometry gives."""
