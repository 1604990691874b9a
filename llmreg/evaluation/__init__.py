"""How good a registration is: overlap and distance of labels, folding and smoothness of displacement fields."""
