"""How good frozen features are: pure functions from features and labels to a result with its interval."""
