"""The search: gates, inner optimisers, hypergradient estimators, selection rules and the selection file."""
