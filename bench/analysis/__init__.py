"""Tables from records: the leaderboard, its tests, ranks, ablations and curves."""
