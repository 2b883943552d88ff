"""Commands that are killed at random moments and started again: what they make must equal an uninterrupted run's."""
