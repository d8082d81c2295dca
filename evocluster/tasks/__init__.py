"""What is to be answered and how well it was: data, program, scorers, perturbations, safety checks."""
