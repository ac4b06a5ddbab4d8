"""Log-likelihoods, accuracies and results."""
