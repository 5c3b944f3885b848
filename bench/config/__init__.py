"""What was asked for: settings, a cell and its id, the grid, files, plug-ins."""
