"""What methods share whose samples follow the field lines of a charged capacitor."""
