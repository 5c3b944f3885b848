"""Many cells, anywhere: in this process, in supervised workers, on a cluster."""
