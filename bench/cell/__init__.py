"""One cell from start to end: draws, training, checkpoints, transport, evaluation."""
